package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// The kernel sends a child its PDEATHSIG when the thread that started it ends (prctl(2)), so main stays on one thread and starts them all.
func init() { runtime.LockOSThread() }

// patience is how long a program may take to end after SIGTERM.
const patience = 8 * time.Second

// A supervisor runs the programs of the control plane as children that cannot outlive it.
type supervisor struct {
	dir      string
	children []*child
	// Children that ended without having been asked to.
	ended chan *child
}

type child struct {
	name    string
	command *exec.Cmd
	// Closed when it is asked to end.
	asked chan struct{}
	// Closed when it has ended.
	gone chan struct{}
}

func newSupervisor(dir string) *supervisor {
	return &supervisor{dir: dir, ended: make(chan *child, 8)}
}

func (s *supervisor) file(name string) string { return filepath.Join(s.dir, name) }

// start runs this very program as `name`: its output goes to NAME.log, its process id to NAME.pid.
func (s *supervisor) start(name string, args ...string) error {
	log, err := os.OpenFile(s.file(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command("/proc/self/exe", append([]string{name}, args...)...)
	command.Dir, command.Stdout, command.Stderr = s.dir, log, log
	// A group of its own: Ctrl-C on the terminal is ours to pass on, in order.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	c := &child{name, command, make(chan struct{}), make(chan struct{})}
	s.children = append(s.children, c)
	go func() {
		_ = command.Wait() // how it ended is in ProcessState
		close(c.gone)
		select {
		case <-c.asked:
		default:
			s.ended <- c
		}
	}()
	return os.WriteFile(s.file(name+".pid"), fmt.Appendln(nil, command.Process.Pid), 0o644)
}

// running tells whether a program has been started and not been stopped since.
func (s *supervisor) running(name string) bool {
	for _, c := range s.children {
		if c.name == name {
			return true
		}
	}
	return false
}

// stop ends one program and waits for it. A program that is not running is left alone.
func (s *supervisor) stop(name string) {
	for i, c := range s.children {
		if c.name != name {
			continue
		}
		s.children = append(s.children[:i:i], s.children[i+1:]...)
		close(c.asked)
		// One that a test has frozen could not hear SIGTERM.
		_ = c.command.Process.Signal(syscall.SIGTERM)
		_ = c.command.Process.Signal(syscall.SIGCONT)
		select {
		case <-c.gone:
		case <-time.After(patience):
			fmt.Fprintf(os.Stderr, "%s did not end within %s after SIGTERM: killing it\n", c.name, patience)
			_ = c.command.Process.Kill()
			<-c.gone
		}
		_ = os.Remove(s.file(name + ".pid"))
		return
	}
}

// stopAll ends every program, the last one started first, so that etcd goes last.
func (s *supervisor) stopAll() {
	for len(s.children) > 0 {
		s.stop(s.children[len(s.children)-1].name)
	}
}

// why tells how a program ended, and where to read on.
func (s *supervisor) why(c *child) error {
	return fmt.Errorf("%s ended by itself (%s); its last words are in %s", c.name, c.command.ProcessState, s.file(c.name+".log"))
}

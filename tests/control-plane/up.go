package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const upUsage = `usage: kubernetes up --dir FOLDER [flags]
Runs a control plane until SIGTERM or SIGINT, and says READY on stdout when it is there.
SIGUSR1 stops the API server alone ("APISERVER stopped" on stdout), SIGUSR2 starts it again ("APISERVER ready").
`

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// A plane is one control plane.
type plane struct {
	began       time.Time
	grace       time.Duration
	ports       ports
	credentials *credentials
	signals     chan os.Signal
	*supervisor
}

func up(args []string) error {
	p := &plane{began: time.Now(), signals: make(chan os.Signal, 4)}
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), upUsage)
		flags.PrintDefaults()
	}
	var names list
	dir := flags.String("dir", "", "folder for data, certificates and logs; old data in it are used again")
	port := flags.Int("port", 0, "port of the API server on the loopback; 0: any free one")
	flags.Var(&names, "san", "another name or address by which the API server is reached (repeatable)")
	// Kubernetes' own default: a kubelet renews its lease every 10 s, and with less than that its Node comes and goes.
	flags.DurationVar(&p.grace, "node-monitor-grace-period", 50*time.Second, "silence after which a node is NotReady")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || flags.NArg() > 0 {
		return errors.New(upUsage)
	}
	signal.Notify(p.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2)
	if err := p.prepare(*dir, *port, names); err != nil {
		return err
	}
	defer p.stopAll()
	if err := p.startAll(); err != nil {
		if errors.Is(err, errStopped) {
			return nil
		}
		return err
	}
	fmt.Printf("READY server=%s kubeconfig=%s seconds=%.2f\n", p.server(), p.credentials.kubeconfig("admin"), time.Since(p.began).Seconds())
	return p.serve()
}

func (p *plane) server() string { return secure(p.ports.apiserver) }

func (p *plane) prepare(dir string, port int, names []string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	p.supervisor = newSupervisor(dir)
	if p.ports, err = freePorts(port); err != nil {
		return err
	}
	p.credentials, err = makeCredentials(dir, p.server(), names)
	return err
}

// freePorts finds ports on the loopback; wanted is the API server's unless it is 0. All are held until all are found, so that they differ.
func freePorts(wanted int) (ports, error) {
	p := ports{apiserver: wanted}
	for _, port := range []*int{&p.apiserver, &p.etcd, &p.peer, &p.manager, &p.scheduler} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
		if err != nil {
			return p, err
		}
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	return p, nil
}

func (p *plane) startAll() error {
	pki := p.credentials.pki
	for _, one := range []program{etcd(p.file("etcd"), p.ports), apiserver(pki, p.ports)} {
		if err := p.start(one.name, one.args...); err != nil {
			return err
		}
		if err := p.await(asker(), one.name, one.probe); err != nil {
			return err
		}
	}
	clients := []program{
		controllerManager(pki, p.credentials.kubeconfig("controller-manager"), p.grace, p.ports),
		scheduler(pki, p.credentials.kubeconfig("scheduler"), p.ports),
	}
	for _, one := range clients {
		if err := p.start(one.name, one.args...); err != nil {
			return err
		}
	}
	for _, one := range clients {
		if err := p.await(asker(), one.name, one.probe); err != nil {
			return err
		}
	}
	admin, err := p.admin()
	if err != nil {
		return err
	}
	// The controller-manager's work is seen to be done, and without this one no pod can be made.
	return p.await(admin, "the default ServiceAccount", p.server()+"/api/v1/namespaces/default/serviceaccounts/default")
}

func (p *plane) admin() (*http.Client, error) {
	i, err := p.credentials.pki.load("kubelet-client")
	if err != nil {
		return nil, err
	}
	return asker(tls.Certificate{Certificate: [][]byte{i.certificate.Raw}, PrivateKey: i.key}), nil
}

// serve does what signals ask for, until one of them says stop or a program ends by itself.
func (p *plane) serve() error {
	api := apiserver(p.credentials.pki, p.ports)
	for {
		select {
		case c := <-p.ended:
			return p.why(c)
		case s := <-p.signals:
			switch s {
			case syscall.SIGUSR1:
				p.stop(api.name)
				fmt.Println("APISERVER stopped")
			case syscall.SIGUSR2:
				if !p.running(api.name) {
					if err := p.start(api.name, api.args...); err != nil {
						return err
					}
				}
				if err := p.await(asker(), api.name, api.probe); err != nil {
					if errors.Is(err, errStopped) {
						return nil
					}
					return err
				}
				fmt.Println("APISERVER ready")
			default:
				return nil
			}
		}
	}
}

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"syscall"
	"time"
)

// readyLimit is how long one part may take; it is under 4 s on an idle machine.
const readyLimit = 120 * time.Second

// errStopped: the wait was ended by a signal, which is no failure.
var errStopped = errors.New("stopped by a signal")

// await asks url until it answers 200.
func (p *plane) await(client *http.Client, what, url string) error {
	limit := time.After(readyLimit)
	said := errors.New("no answer yet")
	for {
		if said = ask(client, url); said == nil {
			fmt.Fprintf(os.Stderr, "%s is ready after %.2f s\n", what, time.Since(p.began).Seconds())
			return nil
		}
		select {
		case s := <-p.signals:
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				return errStopped
			}
			fmt.Fprintf(os.Stderr, "%s is ignored until all is ready\n", s)
		case c := <-p.ended:
			return p.why(c)
		case <-limit:
			return fmt.Errorf("%s is not ready after %s (%w); logs are in %s", what, readyLimit, said, p.dir)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func ask(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}

// asker is a client that trusts every server: it only asks on the loopback whether something is there.
func asker(certificates ...tls.Certificate) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates},
		// A new connection each time: what holds one open slows the API server's end down.
		DisableKeepAlives: true,
	}}
}

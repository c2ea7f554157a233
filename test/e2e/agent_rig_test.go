package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tapgate/test/lab"
)

// agentMetrics is where an agent listens unless told otherwise.
const agentMetrics = "http://127.0.0.1:9435/metrics"

// runningAgent is an agent that runs in the gateway's namespace, as on a real one.
type runningAgent struct {
	g     *gate
	cmd   *lab.Cmd
	log   *lockedText
	ended bool
}

// lockedText is a buffer for somebody who reads while another writes.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// agent starts one, with more in its environment, and waits until it follows.
func (g *gate) agent(env []string, args ...string) *runningAgent {
	g.t.Helper()
	a := g.startAgent(env, args...)
	a.says("msg=following")
	return a
}

func (g *gate) startAgent(env []string, args ...string) *runningAgent {
	g.t.Helper()
	a := &runningAgent{g: g, log: &lockedText{}}
	a.cmd = g.Gateway.Command(context.Background(), g.program(), append([]string{"agent", "--bpffs", g.bpffs}, args...)...)
	a.cmd.Stderr, a.cmd.Env = a.log, append(os.Environ(), env...)
	if err := a.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if !a.ended {
			a.end()
		}
		if g.t.Failed() {
			g.t.Logf("the agent said:\n%s", a.log)
		}
	})
	return a
}

// says waits for a line of its log.
func (a *runningAgent) says(text string) {
	a.g.t.Helper()
	retry(a.g.t, func() error {
		if !strings.Contains(a.log.String(), text) {
			return errors.New("the agent does not say " + text)
		}
		return nil
	})
}

func (a *runningAgent) signal(s syscall.Signal) {
	a.g.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		a.g.t.Fatal(err)
	}
}

// kill ends it in the midst of what it does.
func (a *runningAgent) kill() {
	a.g.t.Helper()
	a.ended = true
	a.signal(syscall.SIGKILL)
	if err := a.cmd.Wait(); err == nil {
		a.g.t.Error("it was not killed")
	}
}

// end asks it to end, which has to succeed.
func (a *runningAgent) end() {
	a.g.t.Helper()
	a.ended = true
	a.signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		a.g.t.Errorf("the agent ended with %v", err)
	}
}

// retry tries until it is so.
func retry(t *testing.T, f func() error) {
	t.Helper()
	for end := time.Now().Add(2 * gateWait); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %v", 2*gateWait, err)
		}
	}
}

// client makes connections in the gateway's namespace.
func (g *gate) client() *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = g.Gateway.Do(func() (err error) { c, err = (&net.Dialer{}).DialContext(ctx, network, addr); return err })
		return c, err
	}}
	g.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: gateWait}
}

// lines are the objects in a file of one in each line. A line that is being written
// is left out.
func jsonLines[T any](t *testing.T, file string) (all []T) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := raw[:bytes.LastIndexByte(raw, '\n')+1]
	for line := range bytes.Lines(whole) {
		var one T
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatalf("%s: %v: %s", file, err, line)
		}
		all = append(all, one)
	}
	return all
}

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Cmd is an exec.Cmd whose process lives in a host's network namespace. Start,
// Run, Output and CombinedOutput are as in exec.Cmd. The process is killed
// when its context or the lab ends, and when this process does.
type Cmd struct {
	*exec.Cmd
	host *Host
	stop func() bool
}

// Command prepares a program to run in the host. The filesystem and /sys are
// those of the caller: unlike under "ip netns exec", nothing is mounted.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.lab.ctx, cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &Cmd{cmd, h, stop}
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Start starts the program in the host's namespace.
func (c *Cmd) Start() error {
	err := onStarter(func() error { return c.host.Do(c.Cmd.Start) })
	if err != nil {
		c.stop()
	}
	return err
}

// Wait waits for the end of a started program.
func (c *Cmd) Wait() error {
	defer c.stop()
	return c.Cmd.Wait()
}

// Output runs the program and returns what it wrote to its standard output;
// what it wrote to standard error is in the error.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("output of a command whose stdout is set")
	}
	var out, talk bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &talk
	}
	if err := c.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s in %s: %w: %s", c.Args[0], c.host.Name, err, strings.TrimSpace(talk.String()))
	}
	return out.Bytes(), nil
}

// CombinedOutput runs the program and returns what it wrote to both outputs.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("combined output of a command whose stdout or stderr is set")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Children are started by one thread that lives as long as this process: the
// kernel kills a child on Pdeathsig when the thread that started it ends, and
// the runtime may end any other thread.
var starter = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

func onStarter(f func() error) error {
	done := make(chan error)
	starter() <- func() { done <- f() }
	return <-done
}

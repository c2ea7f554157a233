package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// The configuration that was put in force last, and confirmed where that was asked for,
// is kept in a file for the next boot. What is in force is in the kernel, and nothing but
// "apply --confirmed" reads the file.
const (
	defaultStateDir = "/var/lib/tapgate"
	confirmedName   = "confirmed.yaml"
)

// confirmedFile is where it is kept, "" for not at all: a gateway in another network
// namespace than the machine's own is nothing that a boot brings back.
func (e *env) confirmedFile(g *globals) string {
	switch {
	case g.given("state-dir") && g.stateDir == "":
		return ""
	case g.given("state-dir"):
		return filepath.Join(g.stateDir, confirmedName)
	case g.given("netns"), e.backend != nil, !machinesNetns():
		return ""
	}
	return filepath.Join(defaultStateDir, confirmedName)
}

// machinesNetns says whether this is the network namespace that the machine began with,
// or the container: that of process 1. Who has few capabilities, as tapgate.service, may
// not ask for that one's name, but may look at its files, which have numbers of their own
// in each namespace.
func machinesNetns() bool {
	var own, first unix.Stat_t
	err := errors.Join(unix.Stat("/proc/self/net/dev", &own), unix.Stat("/proc/1/net/dev", &first))
	return err == nil && own.Ino == first.Ino
}

// keepConfirmed writes what is in force into the file. It may have been changed since by
// another command: then that one's.
func (e *env) keepConfirmed(g *globals) {
	if e.confirmedFile(g) == "" {
		return
	}
	opt, err := g.options(false)
	if err == nil {
		var gw gateway
		if gw, err = e.loader().Open(opt, loader.ReadOnly); err == nil {
			e.keepConfirmedOf(g, gw)
			err = gw.Close()
		}
	}
	if err != nil {
		e.notKept(g, err)
	}
}

// keepConfirmedOf is keepConfirmed for a gateway that is open, whose lock keeps others
// from changing it.
func (e *env) keepConfirmedOf(g *globals, gw gateway) {
	file := e.confirmedFile(g)
	if file == "" || gw.Pending() != nil {
		return
	}
	if err := replaceFile(file, []byte(gw.Source())); err != nil {
		e.notKept(g, err)
	}
}

// notKept is a warning: the change itself is made.
func (e *env) notKept(g *globals, err error) {
	e.say("warning: in force, but not kept for the next boot in %s: %v", e.confirmedFile(g), err)
}

// forgetConfirmed removes the file after everything was taken away.
func (e *env) forgetConfirmed(g *globals) error {
	file := e.confirmedFile(g)
	if file == "" {
		return nil
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detached, but the next boot would put it in force again: %w", err)
	}
	return nil
}

// replaceFile gives a file this content at once or not at all, also if the power fails.
func replaceFile(name string, text []byte) error {
	if was, err := os.ReadFile(name); err == nil && bytes.Equal(was, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil { // two may come at once
		return fmt.Errorf("lock %s: %w", filepath.Dir(name), err)
	}
	staged, err := stageFile(name, text, 0o600)
	if err != nil {
		return err
	}
	return staged.put()
}

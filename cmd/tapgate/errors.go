package main

import (
	"errors"
	"fmt"
	"strings"

	"tapgate/loader"
)

// The exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotAttached = 3
	exitBusy        = 4
)

// usageError is a command line that cannot be obeyed.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// configError is a configuration that is wrong at a place the user can find:
// "FILE:LINE:COL", or the flag it came from.
type configError struct {
	place string
	msg   string
}

func (e *configError) Error() string {
	if e.place == "" {
		return shortened(e.msg)
	}
	return e.place + ": " + shortened(e.msg)
}

func exitCode(err error) int {
	var usage *usageError
	var config *configError
	var unlocated *loader.ConfigError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, loader.ErrNotAttached):
		return exitNotAttached
	case errors.Is(err, loader.ErrBusy):
		return exitBusy
	case errors.As(err, &usage), errors.As(err, &config), errors.As(err, &unlocated):
		return exitUsage
	default:
		return exitFailed
	}
}

// errorLines gives each of several joined errors its own line.
func errorLines(err error) []string {
	var lines []string
	for _, e := range split(err) {
		lines = append(lines, e.Error())
	}
	return lines
}

// split takes errors.Join apart, at any depth. An error that wraps several in a
// sentence of its own stays whole.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if usage, ok := err.(*usageError); ok {
		return split(usage.err)
	}
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	parts := many.Unwrap()
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.Error()
	}
	if err.Error() != strings.Join(texts, "\n") {
		return []error{err}
	}
	var all []error
	for _, p := range parts {
		all = append(all, split(p)...)
	}
	return all
}

// locate replaces every loader.ConfigError in err by one that names the place
// in the user's terms. Other errors stay as they are.
func locate(err error, place func(path string) string) error {
	var found *loader.ConfigError
	if !errors.As(err, &found) {
		return err
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, locate(e, place))
		}
		return errors.Join(all...)
	}
	if direct, ok := err.(*loader.ConfigError); ok {
		return &configError{place(direct.Path), direct.Err}
	}
	return locate(errors.Unwrap(err), place)
}

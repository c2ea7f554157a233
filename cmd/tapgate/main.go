// Tapgate makes a Linux machine a gateway that shows a sensor every packet of its
// inner networks. See "tapgate help".
package main

import (
	"fmt"
	"io"
	"os"

	"tapgate/loader"
)

// env is what a command meets of the outside world, so that tests can call
// commands in process. Fields that are nil mean the real thing.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	backend     backend
	missingCaps func() []string

	// auditLog takes a record of each change; nil for none.
	auditLog func(auditRecord)
	args     []string      // the command line
	did      loader.Result // what change has done so far, for the record

	announced []string // changes that were told before they were made
}

func main() {
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, auditLog: systemLog}
	err := run(e, os.Args[1:])
	for _, line := range errorLines(err) {
		fmt.Fprintln(os.Stderr, "tapgate: "+line)
	}
	os.Exit(exitCode(err))
}

// run is the whole program but for printing the error and the exit code.
func run(e *env, args []string) error {
	e.args = args
	started := false
	root := newRootCommand(e, &started)
	root.SetArgs(args)
	err := root.Execute()
	if err != nil && !started {
		// Nothing of ours ran: what cobra says is about the command line.
		return &usageError{err}
	}
	return err
}

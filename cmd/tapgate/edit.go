package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

const savedOnRequest = `
The change is made in the running configuration, and counts at boot. The next
"tapgate apply" of a file replaces it, unless --save writes it into that file
as well, whose comments stay. "tapgate config save" does the same later.`

// edit is a change of the running configuration.
type edit struct {
	force bool
	save  bool // into the file as well
	// put puts it in force: Apply, or Reduce for what only takes away, which
	// must work also where the rest could not be applied any more.
	put func(gateway, loader.Config) (*loader.Result, error)
	// alter makes the new configuration. It gives a note, and nothing is put in
	// force, where all is as asked already.
	alter func(*loader.Config) (note string, err error)
	// place names in the user's terms what a path into the new one came from.
	place func(cfg loader.Config, path string) string
	// after, if any, follows when it is in force, or was already.
	after func(gateway) error
}

// edit makes a change in the running configuration.
func (e *env) edit(g *globals, c *edit) (err error) {
	opt, err := g.options(c.force)
	if err != nil {
		return err
	}
	gw, err := e.loader().Open(opt, loader.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gw.Close()) }()

	doc, err := parseConfig("applied configuration", []byte(gw.Source()))
	if err != nil {
		// Not the fault of this command line, so not a usage error.
		return fmt.Errorf("cannot be changed, only replaced with tapgate apply -f FILE: %v", err)
	}
	cfg := doc.Config
	note, err := c.alter(&cfg)
	if err != nil {
		return err
	}
	follows := true
	if note == "" {
		if cfg.Source, err = rewriteConfig(doc, cfg); err != nil {
			cfg.Source, follows = formatConfig(cfg), false // says the same without comments
		}
	}
	cfg.File = gw.File()
	var saved *saving
	if c.save {
		if saved, err = prepareSave(gw, cfg.File.Path, configChange{doc, cfg, follows}, false); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, saved.drop()) }()
	}
	err = nil
	if note != "" {
		e.say("already so: %s", note)
	} else {
		err = e.change(func() (*loader.Result, error) { return c.put(gw, cfg) })
		err = locate(err, func(path string) string { return c.place(cfg, path) })
		if err != nil && strings.Contains(err.Error(), appliedPlace("")) {
			e.say("what was applied before does not fit this machine any more: put that right, or apply a configuration that fits")
		}
	}
	inForce := err == nil
	if inForce {
		e.keepConfirmedOf(g, gw)
	}
	if err == nil && c.after != nil {
		err = c.after(gw)
	}
	if inForce && saved != nil {
		err = errors.Join(err, e.save(gw, saved))
	}
	return err
}

// appliedPlace names what was in force before.
func appliedPlace(path string) string { return "applied configuration: " + path }

// rulePlace names what a path into the changed configuration came from: the
// flags for the item of a list just added, else what was applied before. flags
// are by the item's keys, where they are called otherwise.
func rulePlace(item, what string, flags map[string]string) func(cfg loader.Config, path string) string {
	return func(_ loader.Config, path string) string {
		rest, ours := strings.CutPrefix(path, item)
		key, isKey := strings.CutPrefix(rest, ".")
		switch {
		case ours && rest == "":
			return what
		case !ours || !isKey:
			return appliedPlace(path)
		case flags[key] != "":
			return "--" + flags[key]
		}
		if i := strings.IndexAny(key, ".["); i >= 0 {
			key = key[:i]
		}
		if key == "name" {
			return "" // these messages name it themselves
		}
		if flag := flags[key]; flag != "" {
			return "--" + flag
		}
		return "--" + key
	}
}

// oneName is for commands whose one argument names a thing.
func oneName(thing string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0, args[0] == "":
			return usagef("which %s? Its NAME is missing", thing)
		case len(args) == 1:
			return nil
		default:
			return usagef("one NAME at a time, got %s", strings.Join(args, " "))
		}
	}
}

// needFlags refuses a command line that lacks flags without which it says nothing.
func needFlags(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			return usagef("--%s is missing: %s %s", name, cmd.Parent().CommandPath(), cmd.Use)
		}
	}
	return nil
}

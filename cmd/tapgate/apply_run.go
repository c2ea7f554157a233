package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"tapgate/loader"
)

// applying is a run of the apply command.
type applying struct {
	env       *env
	g         *globals
	file      string
	dryRun    bool
	confirmed bool
	asJSON    bool
	confirm   time.Duration

	plan    []loader.Change
	failure error // to tell of the plan
}

// appliedJSON is the result for programs.
type appliedJSON struct {
	Changes  []loader.Change `json:"changes"`
	Notes    []string        `json:"notes"` // what was done beside them
	Warnings []string        `json:"warnings"`
	// Serial counts the changes of this gateway; not with --dry-run.
	Serial uint64 `json:"serial,omitempty"`
	// Until is when it goes back by itself, RFC 3339.
	Until string `json:"until,omitempty"`
}

func (a *applying) run(opt loader.Options) error {
	doc, err := a.read()
	if err != nil {
		return err
	}
	if a.dryRun {
		return locate(a.planOnly(opt, doc.Config), doc.place)
	}
	opt.Planner = a
	result, err := a.env.finish(func() (*loader.Result, error) { return a.env.loader().Apply(opt, doc.Config) })
	if !a.asJSON {
		err = a.env.report(result, err)
	} else if err == nil {
		a.env.noteResult(result)
		err = a.writeResult(result)
	}
	if err = errors.Join(locate(err, doc.place), a.failure); err != nil {
		return err
	}
	if result.Until != "" && !a.asJSON {
		a.env.say("in force until %s, then all is as before again: keep it with \"tapgate confirm\"; \"tapgate rollback\" takes it back now",
			clockTime(result.Until))
	}
	a.env.keepConfirmed(a.g)
	return nil
}

// read gives the configuration that was asked for.
func (a *applying) read() (*document, error) {
	if a.confirmed {
		kept := a.env.confirmedFile(a.g)
		if kept == "" {
			return nil, usagef("--confirmed: nothing is kept for a gateway of another network namespace, unless --state-dir says where")
		}
		if _, err := os.Stat(kept); err == nil {
			doc, err := a.env.readConfig(kept)
			if err == nil {
				doc.File = fileBeside(a.file, doc.Config)
			}
			return doc, err
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return a.env.readConfig(a.file)
}

func (a *applying) planOnly(opt loader.Options, cfg loader.Config) error {
	e := a.env
	p, err := e.loader().DryRun(opt, cfg)
	if err != nil {
		return err
	}
	if a.asJSON {
		return e.writeJSON(appliedJSON{Changes: orEmpty(p.Changes), Notes: []string{}, Warnings: orEmpty(p.Warnings)})
	}
	for _, w := range p.Warnings {
		e.say("warning: %s", w)
	}
	a.Planned(p.Changes)
	if len(p.Changes) == 0 {
		e.say("nothing would change")
	} else {
		e.say("dry run: nothing was changed")
	}
	return a.failure
}

// Planned tells what is about to change.
func (a *applying) Planned(plan []loader.Change) {
	a.plan = plan
	if a.asJSON {
		return
	}
	for _, c := range plan {
		line := c.String()
		a.env.announced = append(a.env.announced, line)
		if _, err := fmt.Fprintln(a.env.stdout, printable(line)); err != nil && a.failure == nil {
			a.failure = fmt.Errorf("write what changes: %w", err)
		}
	}
}

// Ending says that flows are about to end.
func (a *applying) Ending(flows int) { announcer{a.env}.Ending(flows) }

func (a *applying) writeResult(r *loader.Result) error {
	planned := map[string]bool{}
	for _, c := range a.plan {
		planned[c.String()] = true
	}
	out := appliedJSON{Changes: orEmpty(a.plan), Notes: []string{}, Warnings: orEmpty(r.Warnings), Serial: r.Serial, Until: r.Until}
	for _, line := range r.Changes {
		if !planned[line] {
			out.Notes = append(out.Notes, line)
		}
	}
	return a.env.writeJSON(out)
}

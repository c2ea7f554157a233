package datapath

import (
	"errors"
	"fmt"
	"time"

	"tapgate/test/model"
)

// compare holds all that the program knows of flows against the model.
func (w *world) compare() error {
	return errors.Join(w.compareSessions(), w.compareBindings(), w.compareAccounts())
}

func (w *world) compareSessions() error {
	theirs, err := w.maps.sessions()
	if err != nil {
		return err
	}
	mine := w.model.Flows()
	w.strays = 0
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for key, s := range theirs {
		o, ok := theirs[s.other]
		if (!ok || o.other != key || s.other == key) && s.half == 1 && (s.life == w.maps.lives["flushed"] || s.life == w.maps.lives["deleted"]) {
			w.strays++
			continue // half way out, and what was the other half may be another flow's
		}
		if !ok || o.other != key || o.half == s.half {
			fail("half a session: %v", s)
			continue
		}
		if s.half == 0 {
			continue
		}
		f, ok := mine[key]
		if !ok {
			fail("the program has the flow %v %v, the model has not", s, o)
			continue
		}
		w.compareSession(f, o, s, fail)
	}
	for key, f := range mine {
		if _, ok := theirs[key]; !ok && !f.Flushed {
			fail("the model has the flow %v, the program has not", f)
		}
	}
	return errors.Join(errs...)
}

func (w *world) compareSession(f model.Flow, in, out session, fail func(string, ...any)) {
	where := fmt.Sprintf("flow %v / %v: ", f.Inside, f.Outside)
	check := func(what string, program, model any) {
		if program != model {
			fail("%s%s %v, the model has %v", where, what, program, model)
		}
	}
	check("inside half", in.key, f.Inside)
	check("origin", in.origin, uint64(f.Origin))
	check("bound", out.bound != 0, f.Bound)
	if !f.Unsure && !f.Flushed && w.clock < f.Deadline && (out.fresh != 0 && f.Settled || out.fresh == 0 && !f.Answered) {
		fail("%sfresh %v, in the model answered %v", where, out.fresh, f.Answered)
	}
	for i, h := range []session{in, out} {
		side := []string{"inside ", "outside "}[i]
		check(side+"packets", h.packets, f.Packets[i])
		check(side+"bytes", h.bytes, f.Bytes[i])
		if f.Inside.Proto == tcp {
			check(side+"TCP flags", h.tcp, uint64(f.Saw[i]))
		}
		if f.Packets[i] > 0 {
			check(side+"last heard", h.last, uint64(f.Last[i]))
		}
		if f.Reset[i] != 0 || h.reset != 0 {
			check(side+"reset", h.reset, uint64(f.Reset[i]))
		}
	}
	live := out.life == w.maps.lives["live"] || out.life == w.maps.lives["dying"]
	if live && f.Flushed || !live && f.Answered && !f.Flushed {
		fail("%slife %d, flushed in the model %v", where, out.life, f.Flushed)
	}
}

func (w *world) compareBindings() error {
	theirs, err := w.maps.bindings()
	if err != nil {
		return err
	}
	remotes, err := w.maps.remotes(theirs)
	if err != nil {
		return err
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	mine := map[endpoint]model.Mapping{}
	for e, m := range w.model.Mappings(w.clock) {
		mine[endpoint{e.Addr, e.Port, e.Proto}] = m
	}
	for e, b := range theirs {
		m, ok := mine[e]
		inner := endpoint{m.Inside.Addr, m.Inside.Port, m.Inside.Proto}
		switch {
		case b.twins != 2:
			fail("half a binding: %v of %v", b, e)
		case !ok:
			fail("the program has the binding %v, left %v ago; the model has not", b, time.Duration(w.clock-int64(b.since)))
		case b.inside != inner || b.sessions != uint64(m.Sessions):
			fail("binding %v, the model has %v", b, m)
		}
	}
	for e, m := range mine {
		if _, ok := theirs[e]; !ok && !m.Due {
			fail("the model has the binding %v, the program has not", m)
		}
	}
	permitted := map[permission]uint64{}
	for e, list := range w.model.Permitted() {
		for remote, n := range list {
			permitted[permission{endpoint{e.Addr, e.Port, e.Proto}, remote}] = uint64(n)
		}
	}
	for p, n := range remotes {
		if permitted[p] != n {
			fail("%d flows permit %v, in the model %d", n, p, permitted[p])
		}
	}
	for p, n := range permitted {
		if _, ok := remotes[p]; !ok {
			fail("no flow permits %v, in the model %d", p, n)
		}
	}
	return errors.Join(errs...)
}

func (w *world) compareAccounts() error {
	table, err := w.maps.account()
	if err != nil {
		return err
	}
	flows := w.model.Flows()
	want := map[string]uint64{"flows": 0, "bindings": 0, "fresh": 0, "forwarded": 0}
	lag, unsure, ended := uint64(0), uint64(0), uint64(0)
	expired := func(f model.Flow) bool { return w.clock >= f.Deadline }
	for _, f := range flows {
		if f.Flushed {
			ended++ // counted until somebody looks at it
			continue
		}
		want["flows"]++
		if f.Answered && !f.Settled || f.Unsure {
			lag++
		}
		if f.Unsure || expired(f) { // whether it is counted as fresh still
			unsure++
		}
		if !f.Answered {
			want["fresh"]++
			if f.Origin == model.Forwarded || f.Origin == model.ByMapping {
				want["forwarded"]++
			}
		}
	}
	gone := uint64(0)
	for _, m := range w.model.Mappings(w.clock) {
		want["bindings"]++
		if m.Due {
			gone++
		}
	}
	for name, n := range want {
		late := uint64(0) // answered since the program looked last
		if name == "fresh" || name == "forwarded" {
			late = lag
		}
		if name == "bindings" {
			table[name] += gone
			late = gone
		}
		if table[name]+unsure < n || table[name] > n+late+w.strays+ended {
			err = errors.Join(err, fmt.Errorf("the table counts %d %s, the model %d", table[name], name, n))
		}
	}
	return err
}

// empty is how a table must be when all has expired.
func (w *world) empty() error {
	sessions, err1 := w.maps.sessions()
	bindings, err2 := w.maps.bindings()
	remotes, err3 := w.maps.remotes(bindings)
	hosts, err4 := w.maps.hosts()
	table, err5 := w.maps.account()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return err
	}
	if n := table["flows"] + table["fresh"] + table["forwarded"] + table["bindings"]; len(sessions)+len(bindings)+len(remotes)+len(hosts) > 0 || n > 0 {
		return fmt.Errorf("all has expired and been swept, and there are left: %v %v %v %v, and in the account %v", sessions, bindings, remotes, hosts, table)
	}
	return nil
}

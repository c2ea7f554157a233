package datapath

import (
	"errors"
	"fmt"
	"time"

	"tapgate/test/model"
)

// clockSlack is how far apart model and program may read the clock.
const clockSlack = int64(2 * time.Second)

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
		if (!ok || o.other != key || s.other == key) && s.half == 1 && (s.life == w.maps.lives["TG_LIFE_FLUSHED"] || s.life == w.maps.lives["TG_LIFE_DELETED"]) {
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
	check("bound", in.bound != 0, f.Bound)
	if !f.Unsure && !f.Flushed && (out.fresh != 0 && f.Settled || out.fresh == 0 && !f.Answered) {
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
			w.near(where+side+"last heard", h.last, f.Last[i], fail)
		}
		if f.Reset[i] != 0 || h.reset != 0 {
			w.near(where+side+"reset", h.reset, f.Reset[i], fail)
		}
	}
	live := out.life == w.maps.lives["TG_LIFE_LIVE"] || out.life == w.maps.lives["TG_LIFE_DYING"]
	if live && f.Flushed || !live && f.Answered && !f.Flushed {
		fail("%slife %d, flushed in the model %v", where, out.life, f.Flushed)
	}
}

// near holds a boot time of the program against one of the model. What would be
// before the boot has no place to be.
func (w *world) near(what string, program uint64, model int64, fail func(string, ...any)) {
	want := model - w.offset
	if model == 0 { // not yet
		want = 0
	}
	if want <= 0 && program == 1 {
		return
	}
	if d := int64(program) - want; d > clockSlack || d < -clockSlack {
		fail("%s %v later than the model says", what, time.Duration(d))
	}
}

func (w *world) compareBindings() error {
	theirs, err := w.maps.bindings()
	if err != nil {
		return err
	}
	remotes, err := w.maps.remotes()
	if err != nil {
		return err
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	mine := map[endpoint]model.Mapping{}
	for e, m := range w.model.Mappings() {
		mine[endpoint{e.Addr, e.Port, e.Proto}] = m
	}
	for e, b := range theirs {
		m, ok := mine[e]
		inner := endpoint{m.Inside.Addr, m.Inside.Port, m.Inside.Proto}
		switch {
		case b.twins != 2:
			fail("half a binding: %v of %v", b, e)
		case !ok:
			fail("the program has the binding %v, left %v ago; the model has not", b, time.Duration(w.now()-w.offset-int64(b.since)))
		case b.inside != inner || b.sessions != uint64(m.Sessions):
			fail("binding %v, the model has %v", b, m)
		}
	}
	for e, m := range mine {
		if _, ok := theirs[e]; !ok {
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
	want := map[string]uint64{"flows": 0, "bindings": uint64(len(w.model.Mappings())), "fresh": 0, "forwarded": 0}
	lag, unsure := uint64(0), uint64(0)
	for _, f := range flows {
		if f.Flushed {
			continue
		}
		want["flows"]++
		if f.Answered && !f.Settled || f.Unsure {
			lag++
		}
		if f.Unsure {
			unsure++
		}
		if !f.Answered {
			want["fresh"]++
			if f.Origin == model.Forwarded || f.Origin == model.ByMapping {
				want["forwarded"]++
			}
		}
	}
	want["bindings"] = uint64(len(w.model.Mappings()))
	for name, n := range want {
		late := uint64(0) // answered since the program looked last
		if name == "fresh" || name == "forwarded" {
			late = lag
		}
		if table[name]+unsure < n || table[name] > n+late+w.strays {
			err = errors.Join(err, fmt.Errorf("the table counts %d %s, the model %d", table[name], name, n))
		}
	}
	return err
}

// empty is how a table must be when all has expired.
func (w *world) empty() error {
	sessions, err1 := w.maps.sessions()
	bindings, err2 := w.maps.bindings()
	remotes, err3 := w.maps.remotes()
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

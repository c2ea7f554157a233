package loader

import (
	"errors"
	"fmt"
)

// Plan is what an apply would change.
type Plan struct {
	Changes  []Change `json:"changes"`
	Warnings []string `json:"warnings"`
}

// DryRun says what Apply would change, and fails where it would be refused. It changes
// nothing. Where nothing is in force, everything is new; what another build has put in
// force is compared as well as long as it can be read.
func DryRun(opt Options, cfg Config) (*Plan, error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	g, err := openAnyBuild(opt, ReadOnly)
	if errors.Is(err, ErrNotAttached) {
		g, err = &Gateway{opt: opt, ns: ns}, nil
	} else {
		err = errors.Join(err, ns.close())
	}
	if err != nil {
		return nil, err
	}
	var p *Plan
	g.asked = true
	err = g.ns.do(func() error { p, err = g.dryRun(cfg); return err })
	return p, errors.Join(err, g.Close())
}

func (g *Gateway) dryRun(cfg Config) (*Plan, error) {
	if err := missing(ProbeFeatures()); err != nil {
		return nil, err
	}
	res, err := judge(g.opt, g.ns, cfg)
	if err != nil {
		return nil, err
	}
	host, err := g.heldAgainstHost(res)
	if err != nil {
		return nil, err
	}
	if res.gateway != nil {
		if g.maps != nil {
			if err := g.checkRoom(&res.gateway.nat); err != nil {
				return nil, err
			}
		}
		res.gateway.settle(res.ingresses(), &g.journal)
		res.gateway.sysctls = g.ownSysctls(res.gateway.sysctls)
	}
	p, err := makePlan(&g.active, res, cfg.Source)
	if err == nil && g.opt.Confirm != 0 {
		err = g.canFallBack(p)
	}
	if err != nil {
		return nil, err
	}
	out := &Plan{Changes: difference(&g.active, &p.record), Warnings: append(res.warnings, host...)}
	if err := g.stillWaits(); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("apply would be refused now: %v", err))
	}
	return out, nil
}

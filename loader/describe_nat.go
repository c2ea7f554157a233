package loader

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// words joins what is said, without what is not.
func words(list ...string) string {
	var said []string
	for _, w := range list {
		if w != "" {
			said = append(said, w)
		}
	}
	return strings.Join(said, " ")
}

// listed is "WHAT a, b", or nothing.
func listed[T fmt.Stringer](what string, list []T) string {
	if len(list) == 0 {
		return ""
	}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return what + " " + strings.Join(texts, ", ")
}

func when(yes bool, text string) string {
	if yes {
		return text
	}
	return ""
}

func (g *resolvedGateway) text() string {
	var timeouts []string
	for _, rule := range timerRules {
		if d := rule.given(g.nat.Timeouts); d != 0 {
			timeouts = append(timeouts, rule.name+" "+seconds(d))
		}
	}
	return words(
		fmt.Sprintf("%d flows at most, %d for each inside host", g.nat.MaxFlows, g.nat.MaxFlowsPerHost),
		listed("exclude", g.nat.Exclude), when(g.nat.Preallocate, "preallocate"), when(g.nat.ClampMSS, "clamp_mss"),
		when(len(timeouts) > 0, "timeouts "+strings.Join(timeouts, ", ")),
	)
}

func (f Forward) text() string {
	asked := "zone " + f.In
	if f.Address.IsValid() {
		asked = f.Address.String()
	}
	to := netip.AddrPortFrom(f.To, f.ToPort).String()
	if f.Ports.Last > f.Ports.First {
		to += fmt.Sprintf("-%d", int(f.ToPort)+int(f.Ports.Last)-int(f.Ports.First))
	}
	return words(f.Proto, f.Ports.String(), "of", asked, "to", to, listed("sources", f.Sources),
		when(f.Rate > 0, fmt.Sprintf("rate %d/s", f.Rate)), when(f.RateHost > 0, fmt.Sprintf("rate %d/s for each source", f.RateHost)))
}

func (m Masquerade) text() string {
	as := "as the address of the interface"
	if len(m.Addresses) > 0 {
		as = listed("as", m.Addresses)
	}
	return words(m.From, "to", m.To, listed("sources", m.Sources), as, listed("ports", m.Ports), when(m.IPv6, "with IPv6"),
		when(m.EndpointIndependent, "filtering endpoint-independent"))
}

func (p Policy) text() string {
	action := "drop"
	if p.Accept {
		action = "accept"
	}
	return words(action, p.From, "to", p.To, p.Proto, listed("sources", p.Sources), listed("destinations", p.Destinations),
		listed("ports", p.Ports), when(p.Log, "log"))
}

// seconds writes a duration as the configuration does.
func seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}

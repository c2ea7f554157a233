package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"tapgate/loader"
)

// unknown is about a key that is not one of those known.
func (r *yamlReader) unknown(f yamlEntry, in string, known ...string) {
	r.failf(f.at, "unknown key %+q in %s%s", f.key, in, didYouMean(f.key, known))
}

// missing is about keys without which a rule says nothing.
func (r *yamlReader) missing(e yamlEntry, what string, has map[string]bool, needed ...string) {
	if _, mapping := r.plain(e.value).(ast.MapNode); !mapping {
		return // told already
	}
	var lack []string
	for _, key := range needed {
		if !has[key] {
			lack = append(lack, key)
		}
	}
	if len(lack) > 0 {
		r.failf(e.at, "%s without %s", what, strings.Join(lack, ", "))
	}
}

// nat reads what is translated. Whether zones and addresses fit is the loader's to say.
func (r *yamlReader) nat(e yamlEntry) *loader.NAT {
	n := &loader.NAT{}
	for _, f := range r.mapping(e, "masquerade:, forwards: and so on") {
		switch f.key {
		case "masquerade":
			for _, m := range r.list(f, "a list of rules, as [{from: internal, to: external}]") {
				n.Masquerades = append(n.Masquerades, r.masquerade(m))
			}
		case "exclude":
			n.Exclude = r.prefixes(f)
		case "forwards":
			for _, fw := range r.list(f, "a list of forwards") {
				n.Forwards = append(n.Forwards, r.forward(fw))
			}
		case "max_flows":
			n.MaxFlows = r.amount(f, "a number of flows")
		case "max_flows_per_host":
			n.MaxFlowsPerHost = r.amount(f, "a number of flows")
		case "preallocate":
			n.Preallocate = r.flag(f)
		case "clamp_mss":
			n.ClampMSS = r.flag(f)
		case "sysctls":
			s, ok := r.text(f, "keep, or set")
			if ok && s != "keep" && s != "set" {
				r.failf(r.places[f.path], "sysctls: keep leaves the forwarding sysctls as they are, set (the default) sets them; not %q", s)
			}
			n.KeepSysctls = s == "keep"
		case "timeouts":
			n.Timeouts = r.timeouts(f)
		default:
			r.unknown(f, "nat", "masquerade", "exclude", "forwards", "max_flows", "max_flows_per_host", "preallocate", "clamp_mss", "sysctls", "timeouts")
		}
	}
	return n
}

// forwarding reads how known flows are forwarded; the default is "".
func (r *yamlReader) forwarding(e yamlEntry) string {
	known := []string{loader.ForwardingFast, loader.ForwardingKernel}
	s, ok := r.text(e, strings.Join(known, " or "))
	if ok && !slices.Contains(known, s) {
		r.failf(r.places[e.path], "forwarding: fast (the default) or kernel, not %q%s", s, didYouMean(s, known))
	}
	if s == loader.ForwardingFast {
		return ""
	}
	return s
}

func (r *yamlReader) masquerade(e yamlEntry) loader.Masquerade {
	var m loader.Masquerade
	has := map[string]bool{}
	for _, f := range r.mapping(e, "{from: ZONE, to: ZONE}") {
		has[f.key] = true
		switch f.key {
		case "name":
			m.Name = r.name(f, "the name of the rule")
		case "from":
			m.From = r.name(f, "the name of a zone")
		case "to":
			m.To = r.name(f, "the name of a zone")
		case "sources":
			m.Sources = r.matches(f)
		case "addresses":
			m.Addresses = r.matches(f)
		case "ports":
			m.Ports = r.ports(f)
			if len(m.Ports) > 2 {
				r.failf(r.places[f.path], "ports: at most two ranges, got %d", len(m.Ports))
			}
		case "filtering":
			if s, ok := r.text(f, strings.Join(filterings, " or ")); ok {
				var err error
				m.EndpointIndependent, err = parseFiltering(s)
				r.value(f, err)
			}
		case "ipv6":
			m.IPv6 = r.flag(f)
		default:
			r.unknown(f, "a masquerade rule", "name", "from", "to", "sources", "addresses", "ports", "filtering", "ipv6")
		}
	}
	r.missing(e, "a masquerade rule", has, "from", "to")
	return m
}

func (r *yamlReader) forward(e yamlEntry) loader.Forward {
	var fw loader.Forward
	var to loader.PortRange
	has := map[string]bool{}
	bad := len(r.errs)
	for _, f := range r.mapping(e, "{name: NAME, in: ZONE, proto: tcp, port: N, to: ADDR:PORT}") {
		has[f.key] = true
		var err error
		switch f.key {
		case "name":
			fw.Name = r.name(f, "the name of the forward")
		case "in":
			fw.In = r.name(f, "the name of a zone")
		case "address":
			if s, ok := r.text(f, "an address of the gateway"); ok {
				fw.Address, err = parseAddr(s)
			}
		case "proto":
			var ok bool
			if fw.Proto, ok = r.text(f, "tcp or udp"); ok {
				err = parseForwardProto(fw.Proto)
			}
		case "port":
			if s, ok := r.text(f, "a port or a range of ports"); ok {
				fw.Ports, err = parsePorts(s)
			}
		case "to":
			if s, ok := r.text(f, "ADDR:PORT"); ok {
				fw.To, to, err = parseEndpoint(s)
				fw.ToPort = to.First
			}
		case "sources":
			fw.Sources = r.matches(f)
		case "limit":
			fw.Rate, fw.RateHost = r.limit(f)
		default:
			r.unknown(f, "a forward", "name", "in", "address", "proto", "port", "to", "sources", "limit")
		}
		r.value(f, err)
	}
	r.missing(e, "a forward", has, "name", "in", "proto", "port", "to")
	if len(r.errs) == bad {
		if err := samePorts(fw.Ports, to); err != nil {
			r.failf(r.places[e.path+".to"], "to: %v", err)
		}
	}
	return fw
}

func (r *yamlReader) limit(e yamlEntry) (rate, perRemote uint32) {
	for _, f := range r.mapping(e, "{rate: N, per_remote: N}") {
		switch f.key {
		case "rate":
			rate = r.amount(f, "new flows a second")
		case "per_remote":
			perRemote = r.amount(f, "new flows a second")
		default:
			r.unknown(f, "a limit", "rate", "per_remote")
		}
	}
	return rate, perRemote
}

func (r *yamlReader) timeouts(e yamlEntry) (t loader.Timeouts) {
	known := timeoutKeys(&t)
	var names []string
	for _, k := range known {
		names = append(names, k.name)
	}
next:
	for _, f := range r.mapping(e, "{udp: 300s, ...}") {
		for _, k := range known {
			if f.key != k.name {
				continue
			}
			if s, ok := r.text(f, "a duration, as 300s"); ok {
				var err error
				*k.value, err = parseTimeout(s)
				r.value(f, err)
			}
			continue next
		}
		r.unknown(f, "timeouts", names...)
	}
	return t
}

type timeoutKey struct {
	name  string
	value *time.Duration
}

func timeoutKeys(t *loader.Timeouts) []timeoutKey {
	return []timeoutKey{
		{"tcp_opening", &t.TCPOpening}, {"tcp_established", &t.TCPEstablished}, {"tcp_closing", &t.TCPClosing},
		{"udp", &t.UDP}, {"udp_unanswered", &t.UDPUnanswered}, {"icmp", &t.ICMP}, {"other", &t.Other},
	}
}

func (r *yamlReader) policy(e yamlEntry) loader.Policy {
	var p loader.Policy
	has := map[string]bool{}
	for _, f := range r.mapping(e, "{from: ZONE, to: ZONE, action: accept}") {
		has[f.key] = true
		switch f.key {
		case "name":
			p.Name = r.name(f, "the name of the policy")
		case "from":
			p.From = r.name(f, "the name of a zone")
		case "to":
			p.To = r.name(f, "the name of a zone")
		case "proto":
			var ok bool
			if p.Proto, ok = r.text(f, "one protocol, as tcp"); ok {
				r.value(f, parsePolicyProto(p.Proto))
			}
		case "source", "sources":
			p.Sources = append(p.Sources, r.matches(f)...)
		case "destination", "destinations":
			p.Destinations = append(p.Destinations, r.matches(f)...)
		case "ports":
			p.Ports = r.ports(f)
		case "action":
			s, ok := r.text(f, "accept or drop")
			if ok && s != "accept" && s != "drop" {
				r.failf(r.places[f.path], "action: accept or drop, not %q", s)
			}
			p.Accept = s == "accept"
		case "log":
			p.Log = r.flag(f)
		default:
			r.unknown(f, "a policy", "name", "from", "to", "proto", "sources", "destinations", "ports", "action", "log")
		}
	}
	r.missing(e, "a policy", has, "from", "to", "action")
	return p
}

// value tells what is wrong with the value of f, if anything.
func (r *yamlReader) value(f yamlEntry, err error) {
	if err != nil {
		r.failf(r.places[f.path], "%s: %v", f.key, err)
	}
}

// name reads a name, which is not empty.
func (r *yamlReader) name(f yamlEntry, want string) string {
	s, ok := r.text(f, want)
	if ok && s == "" {
		r.failf(r.places[f.path], "expected %s, got an empty text", want)
	}
	return s
}

// items are those of a list, or the one that stands without brackets.
func (r *yamlReader) items(e yamlEntry, want string) []yamlEntry {
	switch r.plain(e.value).(type) {
	case *ast.StringNode, *ast.IntegerNode:
		r.places[e.path] = nodeAt(e.value)
		return []yamlEntry{e}
	}
	return r.list(e, want)
}

func (r *yamlReader) prefixes(e yamlEntry) []netip.Prefix {
	var all []netip.Prefix
	for _, item := range r.items(e, "a list of networks, as [192.0.2.0/24]") {
		want := "a network, as 192.0.2.0/24"
		if _, mapping := r.plain(item.value).(ast.MapNode); mapping {
			want += `, or in quotes "2001:db8::/32"` // its colons within brackets
		}
		s, ok := r.text(item, want)
		if !ok {
			continue
		}
		p, err := parsePrefix(s)
		if err != nil {
			r.failf(r.places[item.path], "%s: %v", e.key, err)
			continue
		}
		all = append(all, p)
	}
	return all
}

// matches are prefixes of which there is at least one: an empty list would mean
// the opposite of what it looks like.
func (r *yamlReader) matches(e yamlEntry) []netip.Prefix {
	bad := len(r.errs)
	all := r.prefixes(e)
	r.notEmpty(e, len(all), bad)
	return all
}

func (r *yamlReader) notEmpty(e yamlEntry, n, bad int) {
	if n == 0 && len(r.errs) == bad {
		r.failf(e.at, "%s: an empty list; leave the key out instead", e.key)
	}
}

func (r *yamlReader) ports(e yamlEntry) []loader.PortRange {
	bad := len(r.errs)
	var all []loader.PortRange
	for _, item := range r.items(e, `a list of ports, as [80, "8000-8010"]`) {
		s, ok := r.text(item, "a port or a range of ports")
		if !ok {
			continue
		}
		p, err := parsePorts(s)
		if err != nil {
			r.failf(r.places[item.path], "%s: %v", e.key, err)
			continue
		}
		all = append(all, p)
	}
	r.notEmpty(e, len(all), bad)
	return all
}

// flag reads true or false.
func (r *yamlReader) flag(e yamlEntry) bool {
	switch n := r.plain(e.value).(type) {
	case *ast.BoolNode:
		return n.Value
	case nil, *ast.NullNode:
		r.failf(e.at, "expected true or false, got nothing")
	default:
		got := strings.TrimSuffix(describe(n), " (to mean the text, quote it)")
		r.failf(nodeAt(e.value), "expected true or false, got %s", got)
	}
	return false
}

// amount reads a whole number above zero.
func (r *yamlReader) amount(e yamlEntry, want string) uint32 {
	s, ok := r.text(e, want)
	if !ok {
		return 0
	}
	n, err := parseAmount(s)
	r.value(e, err)
	return n
}

func parseAmount(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a whole number from 1 to %d", s, uint32(1<<32-1))
	}
	return uint32(n), nil
}

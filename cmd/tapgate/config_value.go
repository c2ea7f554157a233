package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tapgate/loader"
)

// The forms in which values stand in the file and after flags. What is parsed
// here is written by the function beside it in the same form.

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q is not an IP address%s", s, addressHint(s))
	case a.Zone() != "":
		return a, fmt.Errorf("%q: an address here has no interface (%%%s)", s, a.Zone())
	}
	return a.Unmap(), nil
}

// parsePrefix reads a network, or an address as the network of that one host.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := parseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is not an address or network, as 192.0.2.0/24%s", s, listHint(s))
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not a network, as 192.0.2.0/24%s", s, listHint(s))
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Errorf("%q: write networks of IPv4 as IPv4", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return p, fmt.Errorf("%q has bits behind its length; did you mean %s?", s, m)
	}
	return p, nil
}

func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func prefixTexts(all []netip.Prefix) []string {
	texts := make([]string, len(all))
	for i, p := range all {
		texts[i] = prefixText(p)
	}
	return texts
}

// parsePorts reads a port or a range of ports with both ends.
func parsePorts(s string) (loader.PortRange, error) {
	first, last, both := strings.Cut(s, "-")
	if !both {
		last = first
	}
	a, okFirst := parsePort(first)
	b, okLast := parsePort(last)
	switch {
	case !okFirst || !okLast:
		return loader.PortRange{}, fmt.Errorf("%q is not a port, 1 to 65535, or a range, as 7000-7009%s", s, listHint(s))
	case a > b:
		return loader.PortRange{}, fmt.Errorf("%q ends before it begins; did you mean %d-%d?", s, b, a)
	}
	return loader.PortRange{First: a, Last: b}, nil
}

// parsePort takes no leading zeros, which some read as octal.
func parsePort(s string) (port uint16, ok bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && s[0] != '0' && s[0] != '+'
}

func portsText(r loader.PortRange) string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func portsTexts(all []loader.PortRange) []string {
	texts := make([]string, len(all))
	for i, r := range all {
		texts[i] = portsText(r)
	}
	return texts
}

func portCount(r loader.PortRange) int { return int(r.Last) - int(r.First) + 1 }

// parseEndpoint reads an address with a port or a range of ports.
func parseEndpoint(s string) (netip.Addr, loader.PortRange, error) {
	bad := fmt.Errorf("%q is not ADDR:PORT, as 192.0.2.3:80, 192.0.2.3:7000-7009 or [2001:db8::3]:80", s)
	colon := strings.LastIndex(s, ":")
	if colon < 0 {
		return netip.Addr{}, loader.PortRange{}, bad
	}
	host, port := s[:colon], s[colon+1:]
	inner, bracket := strings.CutPrefix(host, "[")
	if bracket {
		var ok bool
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, loader.PortRange{}, bad
		}
	}
	a, err := parseAddr(host)
	if err != nil || bracket != strings.Contains(host, ":") {
		return netip.Addr{}, loader.PortRange{}, bad
	}
	ports, err := parsePorts(port)
	return a, ports, err
}

func endpointText(a netip.Addr, ports loader.PortRange) string {
	if a.Is4() {
		return a.String() + ":" + portsText(ports)
	}
	return "[" + a.String() + "]:" + portsText(ports)
}

// forwardTo is where a forward leads, with the whole range of ports there.
func forwardTo(f loader.Forward) string {
	last := int(f.ToPort) + portCount(f.Ports) - 1
	if last > 65535 {
		last = int(f.ToPort) // refused by the loader; whatever it is, it is no range
	}
	return endpointText(f.To, loader.PortRange{First: f.ToPort, Last: uint16(last)})
}

// samePorts: each port of a forward becomes one there.
func samePorts(ports, to loader.PortRange) error {
	if portCount(ports) != portCount(to) {
		return fmt.Errorf("%d ports (%s) cannot lead to %d (%s): give both ranges the same size",
			portCount(ports), portsText(ports), portCount(to), portsText(to))
	}
	return nil
}

var forwardProtos = []string{"tcp", "udp"}

func parseForwardProto(s string) error {
	if !slices.Contains(forwardProtos, s) {
		return fmt.Errorf("a forward is tcp or udp, not %q", s)
	}
	return nil
}

var policyProtos = []string{"tcp", "udp", "icmp", "icmpv6"}

func parsePolicyProto(s string) error {
	if slices.Contains(policyProtos, s) {
		return nil
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && s == strconv.FormatUint(n, 10) {
		return nil
	}
	return fmt.Errorf("unknown protocol %q%s (or a number, as 47 for GRE)", s, didYouMean(s, policyProtos))
}

// The ways to filter what comes to a mapping.
const (
	addressDependent    = "address-dependent"
	endpointIndependent = "endpoint-independent"
)

var filterings = []string{addressDependent, endpointIndependent}

func parseFiltering(s string) (independent bool, err error) {
	if !slices.Contains(filterings, s) {
		return false, fmt.Errorf("unknown filtering %q%s", s, didYouMean(s, filterings))
	}
	return s == endpointIndependent, nil
}

func parseTimeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if _, number := strconv.ParseFloat(s, 64); err != nil && number == nil {
		return 0, fmt.Errorf("%q has no unit; did you mean %ss?", s, s)
	}
	if err != nil {
		hint := ""
		if days, ok := strings.CutSuffix(s, "d"); ok {
			if n, err := strconv.Atoi(days); err == nil {
				hint = fmt.Sprintf("; did you mean %dh?", 24*n)
			}
		}
		return 0, fmt.Errorf("%q is not a duration, as 300s or 2h4m%s", s, hint)
	}
	if d <= 0 {
		return 0, fmt.Errorf("%q: must be above zero", s)
	}
	return d, nil
}

func timeoutText(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return d.String()
}

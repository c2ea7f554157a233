package loader

import (
	"slices"
	"strings"
	"testing"
)

// forwardingOff is a machine that forwards by one interface only and takes no redirects.
func forwardingOff(b *natBench) {
	b.setSysctl(sysctlForward4, "0")
	b.setSysctl(sysctlForward6, "0")
	b.setSysctl("net/ipv4/conf/eth4/forwarding", "1")
	b.setSysctl("net/ipv4/conf/all/accept_redirects", "0")
	b.setSysctl("net/ipv6/conf/default/forwarding", "1")
	b.setSysctl("net/ipv6/conf/eth0/accept_ra", "1")
}

var gatewaySysctls = []string{
	sysctlForward4, "net/ipv4/conf/eth0/forwarding", "net/ipv4/conf/eth4/forwarding", "net/ipv4/conf/default/forwarding",
	"net/ipv4/conf/all/accept_redirects",
	sysctlForward6, "net/ipv6/conf/eth0/forwarding", "net/ipv6/conf/default/forwarding", "net/ipv6/conf/eth0/accept_ra",
}

func TestNATSysctls(t *testing.T) {
	b := newNATBench(t)
	forwardingOff(b)
	before := b.sysctls(gatewaySysctls...)
	if before != "001000011" {
		t.Fatalf("the test begins with %s", before)
	}
	b.apply(natConfig())
	if got := b.sysctls(gatewaySysctls...); got != "111101112" {
		t.Errorf("applied: %s", got)
	}
	b.pingOut(1)
	b.apply(natConfig()) // once more: what was before must not be forgotten
	b.setSysctl(sysctlForward4, "0")
	if res := b.apply(natConfig()); !slices.Equal(res.Changes, []string{"net.ipv4.ip_forward set to 1 again"}) {
		t.Errorf("applied when somebody had switched forwarding off: %q", res.Changes)
	}
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	if got := b.sysctls(gatewaySysctls...); got != before {
		t.Errorf("detached: %s, before %s", got, before)
	}
}

// TestNATSysctlsOfOthers: what somebody else has changed since stays.
func TestNATSysctlsOfOthers(t *testing.T) {
	b := newNATBench(t)
	forwardingOff(b)
	b.apply(natConfig())
	b.setSysctl("net/ipv6/conf/eth0/accept_ra", "0")
	b.setSysctl("net/ipv4/conf/all/accept_redirects", "1")
	b.setSysctl("net/ipv4/conf/eth4/forwarding", "0")
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	if got := b.sysctls(gatewaySysctls...); got != "000010010" {
		t.Errorf("detached: %s", got)
	}
}

// TestNATSysctlsWithoutGateway: a configuration that only copies needs none, and
// puts back what the one before needed.
func TestNATSysctlsWithoutGateway(t *testing.T) {
	b := newNATBench(t)
	forwardingOff(b)
	before := b.sysctls(gatewaySysctls...)
	b.apply(natConfig())
	cfg := natConfig()
	cfg.NAT.KeepSysctls = true
	res := b.apply(cfg)
	if got := b.sysctls(gatewaySysctls...); got != before {
		t.Errorf("with sysctls kept: %s, before %s", got, before)
	}
	if !strings.Contains(strings.Join(res.Warnings, "\n"), "net.ipv4.ip_forward is 0") {
		t.Errorf("no warning that nothing is forwarded: %q", res.Warnings)
	}
	b.apply(natConfig())
	cfg.NAT = nil
	b.apply(cfg)
	if got := b.sysctls(gatewaySysctls...); got != before {
		t.Errorf("tap only: %s, before %s", got, before)
	}
}

// TestNATSysctlsCutShort: a run that ended between the change and the settings is
// completed by the next, and undone by detach.
func TestNATSysctlsCutShort(t *testing.T) {
	b := newNATBench(t)
	forwardingOff(b)
	before := b.sysctls(gatewaySysctls...)
	b.apply(natConfig())
	b.setSysctl(sysctlForward4, "0") // as if it had not come that far
	b.open(func(g *Gateway) error { return g.ns.do(g.converge) })
	if got := b.sysctls(sysctlForward4); got != "1" {
		t.Errorf("ip_forward is %s after the next run", got)
	}
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	if got := b.sysctls(gatewaySysctls...); got != before {
		t.Errorf("detached: %s, before %s", got, before)
	}
}

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// announce has the outside host announce these IPv6 prefixes, by a real daemon; the first
// one is to be used no more if there is a second.
func (f *followed) announce(prefixes ...string) *lab.Cmd {
	f.t.Helper()
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=", "--log-facility=-",
		"--dhcp-leasefile=" + f.Dir + "/ra", "--interface=eth0", "--bind-interfaces", "--enable-ra", "--ra-param=eth0,4,600"}
	for i, p := range prefixes {
		life := "1h"
		if i == 0 && len(prefixes) > 1 {
			life = "deprecated"
		}
		args = append(args, fmt.Sprintf("--dhcp-range=%s,ra-only,64,%s", p, life))
	}
	return f.daemon(f.out[0], nil, "dnsmasq", args...)
}

// A provider renumbers by router advertisements: new flows have the new prefix as soon as
// the kernel prefers it, the others go on for as long as their address is there.
func TestAgentFollowAdvertisements(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, loader.AttachAuto, followConfig)
	for name, value := range map[string]string{"accept_ra": "2", "autoconf": "1"} {
		if err := f.Gateway.Sysctl("net/ipv6/conf/eth0/"+name, value); err != nil {
			t.Fatal(err)
		}
	}
	outside6 := func() netip.Addr {
		for _, o := range f.status().Gateway.Outside {
			if a, err := netip.ParseAddr(o.IPv6); err == nil {
				return a
			}
		}
		return netip.Addr{}
	}
	within := func(prefix string) {
		t.Helper()
		p := netip.MustParsePrefix(prefix)
		retry(t, func() error {
			if a := outside6(); !p.Contains(a) {
				return fmt.Errorf("the outside address is %s, want one of %s; the kernel has:\n%s", a, p, f.inGateway("ip", "-6", "addr", "show", "dev", "eth0"))
			}
			return nil
		})
	}
	const first, second = "2001:db8:a::", "2001:db8:b::"
	for _, p := range []string{first, second} {
		f.ip(f.out[0], "addr add "+p+"8/64 dev eth0 nodad")
	}
	server := f.announce(first)
	retry(t, func() error {
		if out := f.inGateway("ip", "-6", "addr", "show", "dev", "eth0"); !strings.Contains(out, "2001:db8:a:") {
			return fmt.Errorf("no address of %s:\n%s", first, out)
		}
		return nil
	})
	f.disown("IPv6")
	f.resumes("the address that was there goes, one by advertisement stays", func() {
		f.ip(f.Gateway, "-6 addr del "+f.Gateway.Interface("eth0").Addr6.String()+" dev eth0")
		f.ip(f.Gateway, "-6 route replace default via "+first+"8 dev eth0")
	})
	within(first + "/64")
	f.endDaemon(server)
	f.sameOutside("another prefix is preferred", func() {
		f.announce(first, second)
		within(second + "/64")
		f.resumes("the old prefix is deprecated", func() {})
	})
	f.disown("IPv6")
	f.resumes("the old prefix is gone", func() {
		f.ip(f.Gateway, "-6 addr del "+f.outsides()[1].Addr().String()+"/64 dev eth0")
		f.ip(f.Gateway, "-6 route replace default via "+second+"8 dev eth0")
	})
	if p := netip.MustParsePrefix(second + "/64"); !p.Contains(f.outsides()[1].Addr()) {
		t.Errorf("words come from %s, want %s", f.outsides()[1], p)
	}
}

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
)

// The recipe by a running firewalld, its conversion by the commands that check prints,
// and the way back, with connections open in both directions: none breaks.
func TestHostRulesCutOverFirewalld(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	w := newFirewalldWall(t) // zone external masquerades and forwards a port
	w.run(`firewall-cmd --permanent --new-policy=out
		firewall-cmd --permanent --policy=out --add-ingress-zone=internal
		firewall-cmd --permanent --policy=out --add-egress-zone=external
		firewall-cmd --permanent --policy=out --set-target=ACCEPT
		firewall-cmd --reload`)
	echoTCP(t, w.in[1], netip.AddrPortFrom(w.in[1].Addr, 3389).String())
	echo := netip.MustParseAddrPort(echoTCP(t, w.out[0], netip.AddrPortFrom(w.out[0].Addr, 0).String()))
	front := netip.AddrPortFrom(w.outside(false), 3389)
	k := newTalk(t)
	more := func(when string) {
		t.Helper()
		k.addTCP(w.gate, "TCP from inside, begun "+when, w.in[0], false, echo)
		k.addTCP(w.gate, "TCP from outside, begun "+when, w.out[1], false, front)
		k.goOn(when)
	}
	udp := netip.AddrPortFrom(w.out[1].Addr, 5000)
	k.addUDP(w.gate, "UDP from inside", w.in[0], w.out[1], udp, udp)
	more("with firewalld")

	found, problems := w.check(hostWallConfig)
	if len(problems) != 1 || !strings.Contains(problems[0], "--cut-over") {
		t.Fatalf("check: %q", problems)
	}
	r := w.tapgateIn(hostWallConfig, "apply", "-f", "-", "--cut-over")
	if r.code != 0 {
		t.Fatalf("apply --cut-over: %s", r)
	}
	for _, h := range found {
		if h.Kind != loader.HostMasqueradesOthers && !strings.Contains(r.stderr, strings.Join(h.Commands, "\n  ")) {
			t.Errorf("apply does not print what mends %+v:\n%s", h, r.stderr)
		}
	}
	k.goOn("with both")
	w.obey(found)
	k.goOn("after the commands")
	more("with tapgate")
	if left, _ := w.check(hostWallConfig); len(left) > 0 {
		t.Errorf("after the commands: %+v", left)
	}

	w.run(`firewall-cmd --permanent --zone=external --add-masquerade
		firewall-cmd --permanent --zone=external --add-forward-port=port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3
		firewall-cmd --reload`)
	k.goOn("with both again")
	// What is in force stays so, and is told of.
	if r := w.tapgateIn(hostWallConfig, "apply", "-f", "-"); r.code != 0 || !strings.Contains(r.stderr, "--remove-masquerade") {
		t.Errorf("apply of what is in force: %s", r)
	}
	w.must("detach")
	k.goOn("with firewalld alone")
	more("with firewalld again")
}

// Rules added by commands are held against the host's rules as well, other changes not.
func TestHostRulesCommands(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	w := newHostWall(t, `nft -f - <<'X'
		table ip host {
			chain forward { type filter hook forward priority filter; policy drop
				ct state established,related accept
				iifname { "eth3", "eth4" } accept
			}
			chain post { type nat hook postrouting priority srcnat
				oifname "eth0" ip saddr 192.168.5.0/24 masquerade
			}
		}
X`)
	w.apply(gateZones + "nat: {masquerade: [{from: internal, to: external}]}\n")
	r := w.must("forward", "add", "web", "--in", "external", "--proto", "tcp", "--port", "80", "--to", "192.168.3.2:80")
	if want := "nft insert rule ip host forward iifname eth0 oifname eth3 ip daddr 192.168.3.2 tcp dport 80 accept"; !strings.Contains(r.stderr, want) {
		t.Errorf("a forward that the host drops: %s", r)
	}
	if r := w.must("mirror", "del", "ids"); strings.Contains(r.stderr, "host") {
		t.Errorf("a change that adds no rule: %s", r)
	}
	if r := w.must("masquerade", "add", "--from", "mgmt", "--to", "external"); !strings.Contains(r.stderr, "nft delete rule ip host post handle ") {
		t.Errorf("a masquerade beside that of the host: %s", r)
	}
}

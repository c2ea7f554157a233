package e2e

import (
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
)

// A firewalld with its default rules, with either of its backends.
func TestHostRulesFirewalld(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newFirewalldWall(t, "FirewallBackend="+backend)
			found, _ := w.check(hostWallConfig)
			redirects := w.kind(found, loader.HostRedirects)
			want := "firewall-cmd --permanent --zone=external --remove-forward-port=port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3"
			if len(redirects) != 1 || redirects[0].Commands[0] != want {
				t.Errorf("firewalld's own forward: %+v", redirects)
			}
			w.obey(redirects)
			w.walledIn("forward", "out")
			found, _ = w.check(hostWallConfig)
			if len(found) > 0 {
				t.Errorf("at the end: %+v", found)
			}
		})
	}
}

// What firewalld masquerades by a rich rule or a policy goes by a command of its own.
func TestHostRulesFirewalldMasquerades(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	w := newFirewalldWall(t)
	w.run(`firewall-cmd --permanent --zone=external --remove-masquerade
		firewall-cmd --permanent --zone=external --add-rich-rule='rule family=ipv4 source address=192.168.3.0/24 masquerade'
		firewall-cmd --permanent --new-policy=out
		firewall-cmd --permanent --policy=out --add-ingress-zone=internal
		firewall-cmd --permanent --policy=out --add-egress-zone=external
		firewall-cmd --permanent --policy=out --add-masquerade
		firewall-cmd --reload`)
	masquerades := w.refused(hostWallConfig)
	if len(masquerades) != 2 {
		t.Errorf("a rich rule and a policy: %+v", masquerades)
	}
	w.obey(masquerades)
	if found, problems := w.check(hostWallConfig); len(w.kind(found, loader.HostMasquerades)) > 0 || len(problems) > 0 {
		t.Errorf("after the commands: %+v, problems %q", found, problems)
	}
}

// dockerRules are those of a Docker host; beside them the host masquerades itself.
const dockerRules = `
	%[1]s -P FORWARD DROP
	for c in DOCKER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do %[1]s -N $c; done
	%[1]s -A FORWARD -j DOCKER-USER
	%[1]s -A FORWARD -j DOCKER-ISOLATION-STAGE-1
	%[1]s -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	%[1]s -A FORWARD -o docker0 -j DOCKER
	%[1]s -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
	%[1]s -A FORWARD -i docker0 -o docker0 -j ACCEPT
	%[1]s -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
	%[1]s -A DOCKER-ISOLATION-STAGE-1 -j RETURN
	%[1]s -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
	%[1]s -A DOCKER-ISOLATION-STAGE-2 -j RETURN
	%[1]s -A DOCKER-USER -j RETURN
	%[1]s -t nat -N DOCKER
	%[1]s -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
	%[1]s -t nat -A DOCKER -i docker0 -j RETURN
	%[1]s -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
	%[1]s -t nat -A POSTROUTING -o eth0 -m comment --comment "what's \"mine\"" -j MASQUERADE
`

// The forward policy of Docker, by both kinds of iptables.
func TestHostRulesDocker(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	for _, tool := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			w := newHostWall(t, strings.ReplaceAll(dockerRules, "%[1]s", tool))
			w.walledIn("forward", "out")
			rules, err := w.shell(tool + "-save")
			if err != nil || !strings.Contains(rules, "-A DOCKER-USER -d 192.168.3.3/32 -i eth0 -o eth3 -p tcp -m tcp --dport 3389 -j ACCEPT") {
				t.Errorf("not in DOCKER-USER (%v):\n%s", err, rules)
			}
			found, _ := w.check(hostWallConfig)
			others := w.kind(found, loader.HostMasqueradesOthers)
			if len(others) != 1 || others[0].By != "Docker" || len(found) != 1 {
				t.Errorf("Docker's masquerade of its own network: %+v", found)
			}
			// Each apply warns of what stands against it, and that does not.
			if r := w.tapgateIn(hostWallConfig, "apply", "-f", "-"); r.code != 0 || strings.Contains(r.stderr, "warning") {
				t.Errorf("apply beside Docker: %s", r)
			}
		})
	}
}

// Rules of nft as hosts have them, and with what nft has beyond iptables.
func TestHostRulesNft(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	for name, c := range map[string]struct {
		rules   string
		stopped []string
	}{
		"policy": {`table inet filter {
				chain forward { type filter hook forward priority filter; policy drop
					ct state vmap { established : accept, related : accept, invalid : drop }
					iifname "eth4" accept
				}
			}
			table ip nat { chain post { type nat hook postrouting priority srcnat
				oifname "eth0" masquerade fully-random
			}
			}`, []string{"forward", "out"}},
		"sets": {`table inet wall {
				set lan { type ifname; elements = { "eth3", "eth5" } }
				set ports { type inet_service; flags interval; elements = { 22, 80-443, 3389 } }
				chain forward { type filter hook forward priority -10
					ct state established,related counter accept
					ct status dnat accept
					ct state invalid drop
					iifname vmap { "eth0" : jump from-outside, "eth3" : goto from-inside }
					counter reject with icmpx admin-prohibited
				}
				chain from-outside { ip daddr 192.168.3.2 tcp dport @ports accept; }
				chain from-inside { oifname { "eth0", "eth4" } ip daddr != 10.0.0.0/8 log accept; }
				chain post { type nat hook postrouting priority srcnat
					iifname @lan ip saddr != { 10.0.0.0/8, 172.16.0.0/12 } meta l4proto { tcp, udp } snat ip to 203.0.113.1
				}
			}`, []string{"forward"}},
		"nothing established": {`table ip filter {
				chain forward { type filter hook forward priority filter; policy drop; }
				chain post { type nat hook postrouting priority srcnat; masquerade; }
			}`, []string{"forward", "out"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHostWall(t, "nft -f - <<'X'\n"+c.rules+"\nX\n")
			w.walledIn(c.stopped...)
		})
	}
}

// Rules that have nothing to do with flows of ours are no finding.
func TestHostRulesOfNoConcern(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	w := newHostWall(t, `nft -f - <<'X'
		table inet filter {
			chain input { type filter hook input priority filter; policy drop; ct state established,related accept; iifname lo accept; }
			chain forward { type filter hook forward priority filter; policy accept
				ct state invalid drop
				iifname "eth2" drop
				iifname "eth0" tcp dport 25 drop
				ip saddr 198.51.100.0/24 drop
				limit rate over 100000/second drop
			}
			chain post { type nat hook postrouting priority srcnat
				oifname "eth4" masquerade
				ip saddr 192.168.3.0/24 ip daddr 10.8.0.0/16 masquerade
				fib saddr type local oifname "eth0" masquerade
				ct status dnat oifname "eth0" masquerade
			}
		}
X`)
	config := strings.Replace(hostWallConfig, "  forwards:", "  exclude: [10.8.0.0/16]\n  forwards:", 1)
	found, problems := w.check(config)
	for _, h := range found {
		if h.Kind != loader.HostMasqueradesOthers {
			t.Errorf("found: %+v", h)
		}
	}
	if r := w.tapgateIn(config, "apply", "-f", "-"); r.code != 0 || strings.Contains(r.stderr, "warning") || len(problems) > 0 {
		t.Errorf("apply: %s; check: %q", r, problems)
	}
	w.wall()
	// Only taps: none of its business.
	w.must("detach")
	w.run(`nft add rule inet filter post oifname "eth0" masquerade`)
	if r := w.tapgateIn(gateZones, "apply", "-f", "-"); r.code != 0 || strings.Contains(r.stderr, "warning") {
		t.Errorf("apply of a tap beside a masquerade: %s", r)
	}
}

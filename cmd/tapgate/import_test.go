package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// importLinks are the interfaces of a gateway as in the examples, and two more.
func importLinks() []hostLink {
	link := func(name string, nets ...string) hostLink {
		l := hostLink{name: name, up: true}
		for _, n := range nets {
			l.addrs = append(l.addrs, netip.MustParsePrefix(n))
		}
		return l
	}
	links := []hostLink{
		link("eth0", "203.0.113.1/24", "2001:db8:113::1/64"), link("eth2", "192.168.4.1/24"), link("eth3", "192.168.3.1/24", "2001:db8:3::1/64"),
		link("eth4", "192.168.5.1/24"), link("eth5", "192.168.8.1/24"), link("eth6", "192.168.6.1/24"), link("docker0", "172.17.0.1/16"),
	}
	links[0].def = true
	links[2].routes = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	return links
}

// What is imported of hosts as they are found, with what is said of the rest.
func TestImport(t *testing.T) {
	was := firewalldDefaults
	firewalldDefaults = t.TempDir() // what is installed here is not looked at
	defer func() { firewalldDefaults = was }()
	read := func(file string) string {
		text, err := os.ReadFile(filepath.Join("testdata", "import", file))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, parse := range map[string]func(*imported) error{
		"firewalld": func(im *imported) error { return im.parseFirewalld("testdata/import/firewalld") },
		"docker":    func(im *imported) error { return im.parseIptables("docker", read("docker.iptables")) },
		"nft":       func(im *imported) error { return im.parseNft("nft", read("sample.nft.json")) },
		// Without the machine's addresses.
		"elsewhere": func(im *imported) error {
			im.links = nil
			return im.parseIptables("elsewhere", read("docker.iptables"))
		},
	} {
		im := &imported{links: importLinks()}
		if err := parse(im); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text := importText(im, im.build())
		golden(t, "import-"+name+".yaml", text)
		if _, err := parseConfig(name, []byte(text)); err != nil {
			t.Errorf("%s: what is written cannot be read: %v", name, err)
		}
	}
}

// A running firewalld tells the same as its files.
func TestImportFirewalldText(t *testing.T) {
	zones := fwZonesOf(`external (active)
  target: default
  icmp-block-inversion: no
  interfaces: eth0 ppp0
  sources: 
  services: ssh
  ports: 
  forward: yes
  masquerade: yes
  forward-ports: 
	port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3
	port=80:proto=tcp:toport=:toaddr=2001:db8:3::3
  rich rules: 
	rule family="ipv4" source address="198.51.100.0/24" forward-port port="22" protocol="tcp" to-port="2222" to-addr="192.168.3.3"

trusted
  target: ACCEPT
  interfaces: 
`, false)
	if len(zones) != 2 || zones[1].name != "trusted" || zones[1].target != "ACCEPT" || len(zones[1].interfaces) != 0 {
		t.Fatalf("zones: %+v", zones)
	}
	z := zones[0]
	if z.name != "external" || strings.Join(z.interfaces, " ") != "eth0 ppp0" || !z.masquerade || len(z.forwards) != 2 ||
		z.forwards[0] != (fwForward{"3389", "tcp", "3389", "192.168.3.3"}) || z.forwards[1] != (fwForward{"80", "tcp", "", "2001:db8:3::3"}) {
		t.Errorf("external: %+v", z)
	}
	if len(z.rich) != 1 || z.rich[0]["source"]["address"] != "198.51.100.0/24" || z.rich[0]["forward-port"]["to-port"] != "2222" {
		t.Errorf("rich rules: %+v", z.rich)
	}
}

func TestAddressRange(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":               "192.0.2.7/32",
		"192.0.2.0/24":            "192.0.2.0/24",
		"192.0.2.16-192.0.2.19":   "192.0.2.16/30",
		"192.0.2.15-192.0.2.18":   "192.0.2.15/32 192.0.2.16/31 192.0.2.18/32",
		"0.0.0.0-255.255.255.255": "0.0.0.0/0",
		"192.0.2.9-192.0.2.1":     "",
		"192.0.2.9-2001:db8::1":   "",
		"nothing":                 "",
	} {
		var got []string
		if all, ok := addressRange(in); ok {
			for _, p := range all {
				got = append(got, p.String())
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", in, got, want)
		}
	}
}

// Exceptions that a chain makes by RETURN are told, as ours have no such; a comment may
// look like anything.
func TestImportExceptions(t *testing.T) {
	const save = `*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 192.168.3.0/24 -o eth0 -m comment --comment "-m of the office" -j MASQUERADE
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:OFFICE - [0:0]
-A FORWARD -i eth3 -o eth0 -j OFFICE
-A OFFICE -s 192.168.3.7/32 -j RETURN
-A OFFICE -p tcp -m tcp --dport 25 -m comment --comment "!" -j DROP
-A OFFICE -j RETURN
-A OFFICE -p udp -j DROP
-A FORWARD ! -d 10.0.0.0/8 -o eth0 -j DROP
COMMIT
`
	im := &imported{links: importLinks()}
	if err := im.parseIptables("save", save); err != nil {
		t.Fatal(err)
	}
	cfg := im.build()
	if cfg.NAT == nil || len(cfg.NAT.Masquerades) == 0 || len(cfg.Policies) != 1 || cfg.Policies[0].Accept {
		t.Errorf("imported: %+v", cfg)
	}
	notes := strings.Join(im.notes, "\n")
	for _, want := range []string{"an exception from the rules behind it: iptables -t filter -A OFFICE -s 192.168.3.7/32 -j RETURN", "host's own business: iptables -t filter -A FORWARD ! -d 10.0.0.0/8"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note %q: %s", want, notes)
		}
	}
	if strings.Count(notes, "iptables") != 2 {
		t.Errorf("other rules are told of: %s", notes)
	}
}

package main

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// firewalldDefaults is where the package keeps zones that nobody has changed.
var firewalldDefaults = "/usr/lib/firewalld"

// fwZone is a zone of firewalld, or a policy of it between zones.
type fwZone struct {
	name, target        string
	policy              bool
	ingress, egress     []string // of a policy
	priority            int
	interfaces, sources []string
	masquerade          bool
	forwards            []fwForward
	services            []string
	ports               []string // "80/tcp"
	rich                []fwRich
}

// fwForward is a forward port in firewalld's words.
type fwForward struct{ port, proto, toPort, toAddr string }

func (f fwForward) String() string {
	s := "port=" + f.port + ":proto=" + f.proto
	if f.toPort != "" {
		s += ":toport=" + f.toPort
	}
	if f.toAddr != "" {
		s += ":toaddr=" + f.toAddr
	}
	return s
}

// fwRich is a rich rule: the attributes of each of its elements.
type fwRich map[string]map[string]string

// fwDirect is a rule of the direct interface.
type fwDirect struct {
	ipv, table, chain, priority, args string
}

// firewalld is all that is read of one.
type firewalld struct {
	zones       []fwZone
	direct      []fwDirect
	defaultZone string
	services    []string // folders
}

type xmlNode struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Text    string     `xml:",chardata"`
	Nodes   []xmlNode  `xml:",any"`
}

func (n xmlNode) attrs() map[string]string {
	m := map[string]string{}
	for _, a := range n.Attrs {
		m[a.Name.Local] = a.Value
	}
	return m
}

func readXML(file string) (n xmlNode, err error) {
	text, err := readFile(file)
	if err != nil {
		return n, err
	}
	if err := xml.Unmarshal(text, &n); err != nil {
		return n, &configError{file, fmt.Sprintf("not firewalld's XML: %v", err)}
	}
	return n, nil
}

// parseFirewalld reads a configuration folder, as /etc/firewalld.
func (im *imported) parseFirewalld(dir string) error {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return usagef("--firewalld %s: not a folder; it is the one that holds zones/, as /etc/firewalld", dir)
	}
	fw := &firewalld{defaultZone: "public", services: []string{filepath.Join(dir, "services"), filepath.Join(firewalldDefaults, "services")}}
	for _, kind := range []string{"zones", "policies"} {
		// A file of the same name in dir is instead of the default.
		files := map[string]string{}
		for _, base := range []string{firewalldDefaults, dir} {
			found, _ := filepath.Glob(filepath.Join(base, kind, "*.xml"))
			for _, f := range found {
				files[strings.TrimSuffix(filepath.Base(f), ".xml")] = f
			}
		}
		var names []string
		for name := range files {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			n, err := readXML(files[name])
			if err != nil {
				return err
			}
			fw.zones = append(fw.zones, fwZoneOf(name, kind == "policies", n))
		}
	}
	direct, err := readXML(filepath.Join(dir, "direct.xml"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, n := range direct.Nodes {
		a := n.attrs()
		switch n.XMLName.Local {
		case "rule":
			fw.direct = append(fw.direct, fwDirect{a["ipv"], a["table"], a["chain"], a["priority"], strings.TrimSpace(n.Text)})
		case "passthrough":
			fw.passthrough(a["ipv"], strings.TrimSpace(n.Text))
		}
	}
	conf, _ := readFile(filepath.Join(dir, "firewalld.conf"))
	for line := range strings.Lines(string(conf)) {
		if zone, ok := strings.CutPrefix(strings.TrimSpace(line), "DefaultZone="); ok {
			fw.defaultZone = zone
		}
	}
	return im.addFirewalld("firewalld ("+dir+")", fw)
}

func fwZoneOf(name string, policy bool, n xmlNode) fwZone {
	a := n.attrs()
	z := fwZone{name: name, policy: policy, target: a["target"]}
	z.priority, _ = strconv.Atoi(a["priority"])
	for _, c := range n.Nodes {
		a := c.attrs()
		switch c.XMLName.Local {
		case "interface":
			z.interfaces = append(z.interfaces, a["name"])
		case "source":
			z.sources = append(z.sources, cmp.Or(a["address"], a["mac"], a["ipset"]))
		case "ingress-zone":
			z.ingress = append(z.ingress, a["name"])
		case "egress-zone":
			z.egress = append(z.egress, a["name"])
		case "masquerade":
			z.masquerade = a["enabled"] != "no" && a["enabled"] != "false"
		case "forward-port":
			z.forwards = append(z.forwards, fwForwardOf(a))
		case "service":
			z.services = append(z.services, a["name"])
		case "port":
			z.ports = append(z.ports, a["port"]+"/"+a["protocol"])
		case "rule":
			rich := fwRich{"rule": a}
			for _, e := range c.Nodes {
				rich[e.XMLName.Local] = e.attrs()
			}
			z.rich = append(z.rich, rich)
		}
	}
	return z
}

func fwForwardOf(a map[string]string) fwForward {
	return fwForward{a["port"], a["protocol"], a["to-port"], a["to-addr"]}
}

// passthrough is a rule as iptables takes it: only appended and inserted ones count.
func (fw *firewalld) passthrough(ipv, args string) {
	words := strings.Fields(args)
	d := fwDirect{ipv: ipv, table: "filter"}
	for i := 0; i+1 < len(words); i++ {
		switch words[i] {
		case "-t", "--table":
			d.table = words[i+1]
		case "-A", "--append", "-I", "--insert":
			d.chain = words[i+1]
			rest := words[i+2:]
			if len(rest) > 0 {
				if _, err := strconv.Atoi(rest[0]); err == nil {
					rest = rest[1:]
				}
			}
			d.args = strings.Join(rest, " ")
			fw.direct = append(fw.direct, d)
			return
		}
	}
}

// fwForwardText reads "port=3389:proto=tcp:toport=3389:toaddr=192.0.2.3".
func fwForwardText(s string) (f fwForward) {
	for _, part := range []struct {
		key string
		to  *string
	}{{"port=", &f.port}, {":proto=", &f.proto}, {":toport=", &f.toPort}, {":toaddr=", &f.toAddr}} {
		_, rest, ok := strings.Cut(s, part.key)
		if !ok {
			continue
		}
		// An IPv6 address has colons of its own, and stands last.
		if part.to != &f.toAddr {
			rest, _, _ = strings.Cut(rest, ":")
		}
		*part.to = rest
	}
	return f
}

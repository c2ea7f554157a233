package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"tapgate/loader"
)

// maxConfig is the size of a configuration in bytes that is still read. The kernel
// keeps its text, compressed if it is long; the loader says when it does not fit.
const maxConfig = 4 << 20

var roles = []string{
	string(loader.RoleExternal), string(loader.RoleInternal), string(loader.RoleDMZ), string(loader.RoleMgmt),
}

// byteOrderMark is what editors on Windows put first.
const byteOrderMark = "\ufeff"

// document is a configuration file that was understood.
type document struct {
	loader.Config
	file   string
	places map[string]token.Position
	root   ast.Node // of Source
}

// parseConfig reads the text of a configuration file. file is what errors call
// it. Whether interfaces and addresses exist is the loader's to say.
func parseConfig(file string, text []byte) (*document, error) {
	if len(text) > maxConfig {
		return nil, &configError{file, fmt.Sprintf("larger than %d bytes", maxConfig)}
	}
	if !utf8.Valid(text) {
		hint := ""
		if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
			hint = " but UTF-16: save it as UTF-8"
		}
		return nil, &configError{file, "not UTF-8 text" + hint}
	}
	text = bytes.TrimPrefix(text, []byte(byteOrderMark))
	r := &yamlReader{file: file, places: map[string]token.Position{}, anchors: map[string]ast.Node{}}
	root, err := r.parse(text)
	if err != nil {
		return nil, err
	}
	d := &document{file: file, places: r.places, root: root}
	d.Source = string(text)
	if root == nil {
		return nil, &configError{file, "empty; it needs at least zones:"}
	}
	for _, e := range r.mapping(yamlEntry{value: root, at: nodeAt(root)}, "zones:, mirrors: and so on") {
		switch e.key {
		case "zones":
			for _, z := range r.mapping(e, "a mapping of zone names") {
				d.Zones = append(d.Zones, r.zone(z))
			}
		case "mirrors":
			for _, m := range r.list(e, "a list of mirrors") {
				d.Mirrors = append(d.Mirrors, r.mirror(m))
			}
		case "nat":
			d.NAT = r.nat(e)
		case "forwarding":
			d.Forwarding = r.forwarding(e)
		case "policies":
			for _, p := range r.list(e, "a list of policies") {
				d.Policies = append(d.Policies, r.policy(p))
			}
		default:
			r.failf(e.at, "unknown key %+q%s", e.key, didYouMean(e.key, []string{"zones", "nat", "forwarding", "policies", "mirrors"}))
		}
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return d, nil
}

func (r *yamlReader) zone(e yamlEntry) loader.Zone {
	z := loader.Zone{Name: e.key}
	var hasRole bool
	for _, f := range r.mapping(e, "{interfaces: [NAME, ...]}") {
		switch f.key {
		case "interfaces":
			z.Interfaces = r.texts(f, "a list of interfaces, as [eth0]", "the name of an interface")
		case "role":
			hasRole = true
			role, ok := r.text(f, "a role: "+strings.Join(roles, ", "))
			if ok && !slices.Contains(roles, role) {
				r.failf(r.places[f.path], "unknown role %+q%s", role, didYouMean(role, roles))
			}
			z.Role = loader.Role(role)
		case "prefixes":
			z.Prefixes = r.prefixes(f)
		default:
			r.failf(f.at, "unknown key %+q in a zone%s", f.key, didYouMean(f.key, []string{"interfaces", "role", "prefixes"}))
		}
	}
	if !hasRole {
		z.Role = loader.Role(z.Name)
		if !slices.Contains(roles, z.Name) {
			r.failf(e.at, "zone %+q: its name is not a role, so say which it has: role: %s", z.Name, strings.Join(roles, " | "))
		}
	}
	return z
}

func (r *yamlReader) mirror(e yamlEntry) loader.Mirror {
	var m loader.Mirror
	var hasName bool
	for _, f := range r.mapping(e, "{name: NAME, zones: [ZONE], targets: [...]}") {
		switch f.key {
		case "name":
			hasName = true
			m.Name, _ = r.text(f, "the name of the mirror")
		case "zones":
			m.Zones = r.texts(f, "a list of zones, as [internal]", "the name of a zone")
		case "targets":
			for _, t := range r.list(f, "a list of targets, as [{via: ADDR}]") {
				m.Targets = append(m.Targets, r.target(t))
			}
		default:
			r.failf(f.at, "unknown key %+q in a mirror%s", f.key, didYouMean(f.key, []string{"name", "zones", "targets"}))
		}
	}
	if !hasName {
		r.failf(e.at, "a mirror without name")
	}
	return m
}

func (r *yamlReader) target(e yamlEntry) loader.Target {
	var t loader.Target
	var err error
	bad := len(r.errs)
	kinds := 0
	for _, f := range r.mapping(e, "{via: ADDR} or {l2: INTERFACE}") {
		var s string
		switch f.key {
		case "via":
			kinds++
			if s, _ = r.text(f, "an address"); s == "" {
				break
			}
			if t.Via, err = parseVia(s); err != nil {
				r.failf(r.places[f.path], "via: %v", err)
			}
		case "l2":
			kinds++
			t.L2, _ = r.text(f, "the name of a dmz interface")
		case "mac":
			if s, _ = r.text(f, "a MAC address"); s == "" {
				break
			}
			if t.MAC, err = parseMAC(s); err != nil {
				r.failf(r.places[f.path], "mac: %v", err)
			}
		case "vxlan", "geneve", "gre", "erspan":
			r.failf(f.at, "%s: not in this version of tapgate, which has via and l2", f.key)
		default:
			r.failf(f.at, "unknown key %+q in a target%s", f.key, didYouMean(f.key, []string{"via", "l2", "mac"}))
		}
	}
	switch {
	case len(r.errs) > bad:
	case kinds != 1:
		r.failf(e.at, "a target is either via: ADDR or l2: INTERFACE")
	case t.MAC != nil && t.L2 == "":
		r.failf(e.at, "mac goes with l2; via finds the MAC by itself")
	}
	return t
}

func parseVia(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%q is not an IP address%s", s, addressHint(s))
	}
	return a.Unmap(), nil
}

func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("%q is not a MAC address of 6 bytes", s)
	}
	return mac, nil
}

// place names the line of a path into the configuration, or of the nearest
// thing around it that stands in the file.
func (d *document) place(path string) string {
	for path != "" {
		if at, ok := d.places[path]; ok {
			return placeText(d.file, at)
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return d.file
}

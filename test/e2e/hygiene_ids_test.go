package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bpfIDs are numbers of programs, maps and links, which the kernel does not use again.
type bpfIDs map[string]map[int]string // kind, id, name

func bpftool(t *testing.T, into any, args ...string) {
	t.Helper()
	var talk bytes.Buffer
	cmd := exec.Command("bpftool", append([]string{"-j"}, args...)...)
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, into)
	}
	if err != nil {
		t.Fatalf("bpftool %s: %v: %s%s", strings.Join(args, " "), err, out, &talk)
	}
}

type bpfObject struct {
	ID     int    `json:"id"`
	Name   string `json:"name"`
	MapIDs []int  `json:"map_ids"`
}

// owned adds what the gateway's pins hold: programs and their maps, maps and
// the maps in them, links.
func (ids bpfIDs) owned(t *testing.T, dir string) {
	t.Helper()
	add := func(kind string, id int, name string) {
		if ids[kind] == nil {
			ids[kind] = map[int]string{}
		}
		ids[kind][id] = name
	}
	for _, path := range tree(t, dir) {
		kind := map[string]string{"programs": "prog", "maps": "map"}[filepath.Base(filepath.Dir(path))]
		if filepath.Base(filepath.Dir(filepath.Dir(path))) == "links" {
			kind = "link"
		}
		if kind == "" {
			continue
		}
		var o bpfObject
		bpftool(t, &o, kind, "show", "pinned", path)
		add(kind, o.ID, filepath.Base(path))
		for _, id := range o.MapIDs {
			add("map", id, "a map of "+filepath.Base(path))
		}
		if name := filepath.Base(path); name == "tg_members" || name == "tg_targets" {
			var inner []struct {
				Formatted struct {
					ID int `json:"inner_map_id"`
				} `json:"formatted"`
				Value []string `json:"value"`
			}
			bpftool(t, &inner, "map", "dump", "pinned", path)
			for _, e := range inner {
				id := e.Formatted.ID
				if len(e.Value) == 4 {
					for i, b := range e.Value {
						var n int
						if _, err := fmt.Sscanf(b, "0x%x", &n); err == nil {
							id |= n << (8 * i)
						}
					}
				}
				if id > 0 {
					add("map", id, "in "+name)
				}
			}
		}
	}
}

// gone fails unless the kernel has none of them soon.
func (ids bpfIDs) gone(t *testing.T) {
	t.Helper()
	if len(ids["prog"]) < 5 || len(ids["map"]) < 12 {
		t.Errorf("only %v were followed: the test sees too little", ids)
	}
	for kind, mine := range ids {
		eventually(t, func() string {
			var all []bpfObject
			bpftool(t, &all, kind, "show")
			for _, o := range all {
				if name, ok := mine[o.ID]; ok {
					return fmt.Sprintf("%s %d (%s, %s) is still there", kind, o.ID, o.Name, name)
				}
			}
			return ""
		})
	}
}

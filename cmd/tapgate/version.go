package main

import (
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// versionInfo says which tapgate this is.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the version control system
	Time     string `json:"time,omitempty"`     // of the revision
	Modified *bool  `json:"modified,omitempty"` // built from changed files; nil if not known
	Go       string `json:"go"`
	Layout   int    `json:"layout"` // of the pinned state that it understands
}

// release is the version of a package, which scripts/package.sh sets.
var release string

func newVersionCommand(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Say which tapgate this is",
		Example: "  tapgate version --json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			info, ok := debug.ReadBuildInfo()
			if !ok {
				info = &debug.BuildInfo{}
			}
			v := versionOf(info)
			if asJSON {
				return e.writeJSON(v)
			}
			return e.write(v.text())
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func versionOf(info *debug.BuildInfo) versionInfo {
	v := versionInfo{Version: info.Main.Version, Go: info.GoVersion, Layout: loader.Layout}
	if release != "" {
		v.Version = release
	}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			modified := s.Value == "true"
			v.Modified = &modified
		}
	}
	return v
}

func (v versionInfo) text() string {
	pairs := []string{"tapgate", v.Version}
	if v.Revision != "" {
		revision := []string{v.Revision, v.Time}
		if v.Modified != nil && *v.Modified {
			revision = append(revision, "modified")
		}
		pairs = append(pairs, "revision", strings.Join(revision, " "))
	}
	return facts(append(pairs, "go", v.Go, "layout", number(uint64(v.Layout)))...)
}

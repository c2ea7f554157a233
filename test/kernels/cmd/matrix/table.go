package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
)

const (
	readme     = "test/kernels/README.md" // holds the table; from the repository's root
	tableBegin = "<!-- kernels:begin -->"
	tableEnd   = "<!-- kernels:end -->"
)

// gatewayFeatures are the columns of the table: what tapgate itself uses.
var gatewayFeatures = []string{"tcx", "clsact", "netns_cookie", "check_mtu"}

// table is kernel by feature by result, in Markdown.
func table(results []*result) string {
	var b strings.Builder
	b.WriteString("| kernel | release | attached by | " + strings.Join(gatewayFeatures, " | ") + " | tests passed | failed | skipped, for want of |\n")
	b.WriteString(strings.Repeat("|---", 6+len(gatewayFeatures)) + "|\n")
	for _, r := range results {
		has := strings.Split(r.Facts["has"], ",")
		attach := strings.Split(r.Facts["attach"], ",")
		slices.Sort(attach)
		fmt.Fprintf(&b, "| %s | %s | %s |", r.Kernel, r.Release, or(strings.Join(attach, ", "), "-"))
		for _, f := range gatewayFeatures {
			if slices.Contains(has, f) {
				b.WriteString(" yes |")
			} else {
				b.WriteString(" no |")
			}
		}
		skipped := fmt.Sprint(r.Skipped)
		if len(r.Features) > 0 {
			skipped += ": " + strings.Join(r.Features, ", ")
		}
		fmt.Fprintf(&b, " %d | %d | %s |\n", r.Passed, r.Failed, skipped)
	}
	return b.String()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// replaceTable puts the table between the markers of a text.
func replaceTable(text []byte, table string) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return nil, fmt.Errorf("no %s and %s", tableBegin, tableEnd)
	}
	return slices.Concat(before, []byte(tableBegin+"\n"+table+tableEnd), after), nil
}

func writeReadme(path, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err = replaceTable(text, table)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, text, 0o644)
}

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const repository = "../.."

// pages are the repository's texts in Markdown, by their path in it.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(repository, path)
		texts[name] = string(text)
		return err
	})
	if err != nil || len(texts) < 8 {
		t.Fatalf("%d pages: %v", len(texts), err)
	}
	return texts
}

// anchors are what a link may ask for behind "#", as GitHub makes them of headings.
func anchors(text string) (names []string) {
	fence := regexp.MustCompile("(?ms)^```.*?^```$")
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// What a page links to is there.
func TestPagesLinks(t *testing.T) {
	texts, n := pages(t), 0
	for name, text := range texts {
		for _, m := range regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`).FindAllStringSubmatch(text, -1) {
			target, anchor := m[1], strings.TrimPrefix(m[2], "#")
			if strings.Contains(target, "://") {
				continue
			}
			n++
			path := name
			if target != "" {
				path = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(repository, path)); err != nil {
				t.Errorf("%s: link to %s: %v", name, m[0], err)
			} else if anchor != "" && !slices.Contains(anchors(texts[path]), anchor) {
				t.Errorf("%s: link to %s: that page has %q", name, m[0], anchors(texts[path]))
			}
		}
	}
	if n < 15 {
		t.Errorf("only %d links were found", n)
	}
}

// The README is for the first ten minutes: what is longer belongs into a manual page.
func TestReadmeIsShort(t *testing.T) {
	text := pages(t)["README.md"]
	if len(text) > 12000 {
		t.Errorf("README.md has %d bytes", len(text))
	}
	for i, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > 120 {
			t.Errorf("README.md:%d: longer than 120 columns", i+1)
		}
	}
}

// It leads to each manual page, and its table has the commands that "tapgate help"
// lists, and no others.
func TestReadmeNamesAll(t *testing.T) {
	text := pages(t)["README.md"]
	for _, p := range manualPages {
		if !strings.Contains(text, "(cmd/tapgate/manual/"+p.topic+".md)") {
			t.Errorf("README.md has no link to %s", p.name)
		}
	}
	_, table, ok := strings.Cut(text, "\n## Commands\n")
	if !ok {
		t.Fatal("README.md has no section Commands")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	root := newRootCommand(&env{}, new(bool))
	var named []string
	for _, cell := range regexp.MustCompile("(?m)^\\| (`tapgate .+?) \\|").FindAllStringSubmatch(table, -1) {
		before := root // "config show", then "schema" of config
		for _, m := range regexp.MustCompile("`(?:tapgate )?([^`]+)`").FindAllStringSubmatch(cell[1], -1) {
			words := strings.Fields(m[1])
			c, _, err := root.Find(words)
			if err != nil || c == root {
				c, _, err = before.Find(words)
			}
			if err != nil || c == root || c == before {
				t.Errorf("%q: no such command: %v", m[1], err)
				continue
			}
			for ; c.Parent() != root; c = c.Parent() {
			}
			before = c
			named = append(named, c.Name())
		}
	}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && !slices.Contains(named, c.Name()) {
			t.Errorf("README.md does not name %q", c.Name())
		}
	}
}

// What a page has people type, is understood: commands and flags.
func TestPagesCommands(t *testing.T) {
	n := 0
	for name, text := range pages(t) {
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
			for _, m := range regexp.MustCompile(`(?m)(?:^|&& )tapgate ([^#>&|\n]+)`).FindAllStringSubmatch(block[1], -1) {
				n++
				if err := understood(strings.Fields(m[1])); err != nil {
					t.Errorf("%s: tapgate %s: %v", name, m[1], err)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands were found", n)
	}
}

// understood looks at a command line as far as its flags and the number of arguments.
func understood(words []string) error {
	c, rest, err := newRootCommand(&env{}, new(bool)).Find(words)
	if err != nil {
		return err
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	args := c.Flags().Args()
	if c.Args == nil {
		return cobra.NoArgs(c, args)
	}
	return c.Args(c, args)
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
)

func addJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "JSON for programs instead of tables")
}

// writeJSON writes a result for programs, in one piece.
func (e *env) writeJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	return e.write(b.String())
}

// write writes a result for people, in one piece, so that a reader who goes
// away does not get half of it unnoticed.
func (e *env) write(s string) error {
	if _, err := e.stdout.Write([]byte(s)); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// columns is a table with a title. A heading that starts with ">" is of numbers
// and set to the right.
func columns(title string, headings []string, rows [][]string) string {
	w := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatDefault
	w.SetStyle(style)

	head := make(table.Row, len(headings))
	var configs []table.ColumnConfig
	for i, h := range headings {
		name, right := strings.CutPrefix(h, ">")
		head[i] = name
		if right {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	w.AppendHeader(head)
	w.SetColumnConfigs(configs)
	for _, r := range rows {
		row := make(table.Row, len(r))
		for i, cell := range r {
			row[i] = printable(cell)
		}
		w.AppendRow(row)
	}
	return title + "\n" + indented(w.Render())
}

// facts are lines of a name and a value.
func facts(pairs ...string) string {
	var rows strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&rows, "%-11s %s\n", pairs[i], printable(pairs[i+1]))
	}
	return rows.String()
}

// bullets are lines under a title; nothing if there are none.
func bullets(title string, lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(title + "\n")
	for _, l := range lines {
		b.WriteString("  " + printable(l) + "\n")
	}
	return b.String()
}

// joinParts puts an empty line between those parts that have something to say.
func joinParts(parts []string) string {
	parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
	return strings.Join(parts, "\n")
}

func indented(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s + "\n") {
		b.WriteString(strings.TrimRight("  "+line, " \n") + "\n")
	}
	return b.String()
}

// printable keeps names that others chose from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// size makes bytes readable: "999 B", "1.5 kB", "12 MB".
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	unit := -1
	for f >= 999.5 && unit < 5 {
		f /= 1000
		unit++
	}
	format := "%.0f %cB"
	if f < 9.95 {
		format = "%.1f %cB"
	}
	return fmt.Sprintf(format, f, "kMGTPE"[unit])
}

package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
)

// manualPage is a page that is about no command. It is shown as a help topic and
// shipped as a manual page; the e2e tests type what stands on it.
type manualPage struct {
	topic   string // "tapgate help TOPIC"
	name    string // of the page
	section string
	title   string // of the section
	short   string
	text    string // Markdown
}

var (
	//go:embed manual/troubleshooting.md
	troubleshootingText string
	//go:embed manual/tapgate.yaml.md
	configurationText string
)

var manualPages = []manualPage{
	{"troubleshooting", "tapgate-troubleshooting", "7", "Miscellaneous Information Manual", "From what you see to what it is and what helps", troubleshootingText},
	{"tapgate.yaml", "tapgate.yaml", "5", "File Formats Manual", "All keys of the configuration, their defaults and units", configurationText},
}

// newTopicCommand makes a help topic: a command that does nothing but tell.
func newTopicCommand(p manualPage) *cobra.Command {
	return &cobra.Command{Use: p.topic, Short: p.short, Long: p.text}
}

// writeManualPages writes those pages into a folder, as NAME.SECTION.
func writeManualPages(dir string) error {
	for _, p := range manualPages {
		head := fmt.Sprintf("%% %q %q %q %q %q\n", p.name, p.section, "", "tapgate", p.title)
		roff := md2man.Render([]byte(head + p.text))
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+p.section), roff, 0o644); err != nil {
			return fmt.Errorf("write a manual page: %w", err)
		}
	}
	return nil
}

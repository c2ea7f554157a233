package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// reportFlags say what goes into a report.
type reportFlags struct {
	out       string
	anonymize bool
	dmesg     bool
}

func newReportCommand(e *env, g *globals) *cobra.Command {
	f := &reportFlags{}
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Collect what a bug report needs into one file",
		Long: `Collects what a bug report needs into one archive: versions, what check and status
say, the configuration in force, numbers of flows (not the flows), our programs and
maps, the order of programs on the interfaces, settings, interfaces, addresses,
routes, rules and neighbours, the names of the host firewall's tables and chains, and
the last lines of our units' log. Each part is gathered by itself; one that fails
holds the error. Nothing is changed, and it works also where nothing is attached.

There are no keys or passwords in it, but addresses of yours, IP and MAC. With
--anonymize each of them becomes another one, the same everywhere, comments of the
configuration are left out, and so is the log.`,
		Example: `  tapgate report
  tapgate report --anonymize -o /tmp/report.tar.gz
  tapgate report -o - | ssh other 'cat >report.tar.gz'`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			if _, err := g.options(false); err != nil {
				return err
			}
			now := time.Now().UTC()
			name := "tapgate-report-" + now.Format("20060102-150405")
			if !cmd.Flags().Changed("output") {
				f.out = name + ".tar.gz"
			}
			if f.out == "" {
				return usagef("--output: must not be empty")
			}
			if file, ok := e.stdout.(*os.File); f.out == "-" && ok && term.IsTerminal(int(file.Fd())) {
				return usagef("-o -: an archive on a terminal helps nobody: send it into a file")
			}
			text, failed, err := e.collect(g, f, name, now)
			if err != nil {
				return err
			}
			if f.out == "-" {
				err = e.write(string(text))
			} else {
				err = writeNew(f.out, text)
			}
			if err != nil {
				return err
			}
			for _, part := range failed {
				e.say("warning: %s", part)
			}
			if f.out == "-" {
				return nil
			}
			what := "it names your IP and MAC addresses; --anonymize replaces them"
			if f.anonymize {
				what = "addresses are replaced; names of interfaces, zones and rules are as they are"
			}
			return e.write(fmt.Sprintf("%s (%s): %s\n", f.out, size(uint64(len(text))), what))
		}),
	}
	p := cmd.Flags()
	p.StringVarP(&f.out, "output", "o", "", "write `FILE`, which must be new; - is standard output (default tapgate-report-TIME.tar.gz)")
	p.BoolVar(&f.anonymize, "anonymize", false, "replace IP and MAC addresses")
	p.BoolVar(&f.dmesg, "dmesg", false, "also the kernel's messages about BPF, interfaces and connection tracking")
	p.SortFlags = false
	return cmd
}

// writeNew writes a file that only its owner reads. It does not follow or replace
// anything that has the name already.
func writeNew(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: there is one already; name another file", name)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the report: %w", errors.Join(err, os.Remove(name)))
	}
	return nil
}

const reportReadme = `A report of tapgate, made %s by "tapgate report".

Each file is a part that was gathered by itself. %s
There are no keys and no packets in it, and of flows only numbers.
`

// collect gathers the parts into an archive. failed are those that hold an error.
func (e *env) collect(g *globals, f *reportFlags, name string, now time.Time) (archive []byte, failed []string, err error) {
	hide := func(s string) string { return s }
	about := "It names IP and MAC addresses as they are."
	if f.anonymize {
		hide = newAnonymizer().text
		about = "IP and MAC addresses are replaced, each by the same one everywhere."
	}
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	w := tar.NewWriter(packed)
	add := func(file, text string) {
		text = hide(text)
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: name + "/" + file, Mode: 0o600, Size: int64(len(text)), ModTime: now}))
		_, werr := io.WriteString(w, text)
		err = errors.Join(err, werr)
	}
	add("README.txt", fmt.Sprintf(reportReadme, now.Format(time.RFC3339), about))
	for _, p := range e.reportParts(g, f) {
		text, perr := p.gather()
		if perr != nil {
			lines := strings.Join(errorLines(perr), "\n")
			failed = append(failed, p.file+": "+hide(lines))
			text = strings.TrimPrefix(text+"\nfailed: "+lines+"\n", "\n")
		}
		if text == "" {
			text = "(nothing)\n"
		}
		add(p.file, text)
	}
	err = errors.Join(err, w.Close(), packed.Close())
	return b.Bytes(), failed, err
}

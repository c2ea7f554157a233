package loader

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// refusedByVerifier is the error of a program that does much and then reads
// memory it must not read.
func refusedByVerifier(t *testing.T) error {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: it loads a program")
	}
	var ins asm.Instructions
	for i := range 40 {
		ins = append(ins, asm.Mov.Imm(asm.R2, int32(i)))
	}
	ins = append(ins,
		asm.Mov.Imm(asm.R1, 0),
		asm.LoadMem(asm.R0, asm.R1, 0, asm.DWord),
		asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tg_bad", Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
	if err == nil {
		p.Close()
		t.Fatal("the verifier took a program that reads from address 0")
	}
	return err
}

// The verifier's log comes in three doses: its end, all of it in a file, and all
// of it at once for who asks.
func TestVerifierErrorInThreeDoses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	refused := refusedByVerifier(t)

	short := loadError(refused, false).Error()
	lines := strings.Split(short, "\n")
	if !strings.HasPrefix(lines[0], "load programs: ") || !strings.Contains(short, "R1 invalid mem access") || !strings.Contains(short, `see also "tapgate check"`) {
		t.Errorf("the short error is not of use:\n%s", short)
	}
	if len(lines) > logTail+2 {
		t.Errorf("the short error has %d lines:\n%s", len(lines), short)
	}
	_, file, ok := strings.Cut(short, "the whole log is in ")
	file, _, _ = strings.Cut(file, ";")
	if !ok || !strings.HasPrefix(file, dir) {
		t.Fatalf("the short error names no file in %s:\n%s", dir, short)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"r2 = 0", "r2 = 39", "R1 invalid mem access"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the log in the file has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(short, "r2 = 0 ") {
		t.Errorf("the short error has the beginning of the log:\n%s", short)
	}

	long := loadError(refused, true).Error()
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); !strings.Contains(long, line) {
			t.Errorf("the long error lacks %q:\n%s", line, long)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d files were written, %v; want one, for the short error", len(files), err)
	}

	// Where no file can be written the error is the same without it.
	t.Setenv("TMPDIR", dir+"/nowhere")
	if short := loadError(refused, false).Error(); !strings.Contains(short, "R1 invalid mem access") || strings.Contains(short, "whole log") {
		t.Errorf("without a place for a file:\n%s", short)
	}
}

func TestLoadErrorsThatAreNotTheVerifiers(t *testing.T) {
	if err := loadError(unix.EPERM, false); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_BPF") {
		t.Errorf("not allowed: %v", err)
	}
	if err := loadError(unix.ENOSPC, true); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "CAP_BPF") {
		t.Errorf("no space: %v", err)
	}
}

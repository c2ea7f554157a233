package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tapgate/test/lab"
)

const builderEnv = "TAPGATE_LAB_BUILDER"

func TestMain(m *testing.M) {
	if os.Getenv(builderEnv) != "" {
		buildAndHang()
	}
	os.Exit(m.Run())
}

// buildAndHang is another process with a lab, to be killed.
func buildAndHang() {
	l, err := lab.New(lab.Prefix("tgstale"))
	if err == nil {
		_, err = l.MountBPFFS()
	}
	cmd := l.Sensor.Command(l.Context(), "sleep", "600")
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("built", cmd.Process.Pid)
	select {}
}

func TestRemoveStale(t *testing.T) {
	mine := lab.ForTest(t)
	// A stranger's namespace with such a name.
	stranger := "tgstale-1-1-gw"
	if out, err := exec.Command("ip", "netns", "add", stranger).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("ip", "netns", "del", stranger).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	// Strangers' folders.
	other := filepath.Join(os.TempDir(), "tgstale-1-1-1")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other)

	builder := exec.Command(os.Args[0])
	builder.Env = append(os.Environ(), builderEnv+"=1")
	out, err := builder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := builder.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	var child int
	if _, scan := fmt.Sscanf(said, "built %d", &child); scan != nil {
		t.Errorf("builder says %q, %v", said, err)
	}
	names := "tgstale-" + fmt.Sprint(builder.Process.Pid)
	if removed, err := lab.RemoveStale(); err != nil || slices.ContainsFunc(removed, func(s string) bool { return strings.Contains(s, names) }) {
		t.Errorf("removed a lab in use: %v, %v", removed, err)
	}
	if err := builder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = builder.Wait() // killed
	if len(leftovers(t, names)) == 0 {
		t.Error("nothing to remove: the test tests nothing")
	}
	if _, err := lab.RemoveStale(); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, names); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if left := leftovers(t, "tgstale-1-1"); len(left) < 2 {
		t.Errorf("a stranger's things are gone, left: %v", left)
	}
	mustPing(t, mine.Servers[0], mine.Gateway.Interface("eth3").Addr.Addr(), 1)

	// What the lab started ends with its owner.
	for i := 0; ; i++ {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if i == 1e6 {
			t.Errorf("process %d of the killed lab lives", child)
			break
		}
	}
}

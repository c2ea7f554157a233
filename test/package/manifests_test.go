package packaging

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"tapgate/test/lab"
)

// container is what the test looks at of one.
type container struct {
	Name, Image  string
	Args         []string
	VolumeMounts []struct{ Name, MountPath string } `yaml:"volumeMounts"`
}

// The manifests fit each other, and the program that they run: its commands, and a
// configuration that can be put in force on the networks of the examples.
func TestManifests(t *testing.T) {
	read := func(file string, to any) {
		text, err := os.ReadFile(filepath.Join(repository, "scripts/kubernetes", file))
		if err == nil {
			err = yaml.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	var config struct {
		Metadata struct{ Name, Namespace string }
		Data     map[string]string
	}
	var daemons struct {
		Metadata struct{ Namespace string }
		Spec     struct {
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			}
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					HostNetwork    bool        `yaml:"hostNetwork"`
					InitContainers []container `yaml:"initContainers"`
					Containers     []container
					Volumes        []struct {
						Name      string
						ConfigMap struct{ Name string } `yaml:"configMap"`
					}
				}
			}
		}
	}
	read("configmap.yaml", &config)
	read("daemonset.yaml", &daemons)
	pod := daemons.Spec.Template.Spec
	containers := slices.Concat(pod.InitContainers, pod.Containers)
	if len(containers) != 2 || containers[0].Name != "apply" || containers[1].Name != "agent" || !pod.HostNetwork {
		t.Fatalf("containers: %+v, on the node's network: %v", containers, pod.HostNetwork)
	}
	if config.Metadata.Namespace != daemons.Metadata.Namespace {
		t.Errorf("in namespaces %q and %q", config.Metadata.Namespace, daemons.Metadata.Namespace)
	}
	for k, v := range daemons.Spec.Selector.MatchLabels {
		if daemons.Spec.Template.Metadata.Labels[k] != v {
			t.Errorf("label %s=%s is not the pod's", k, v)
		}
	}
	volumes := map[string]string{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v.ConfigMap.Name
	}
	for _, c := range containers {
		for _, m := range c.VolumeMounts {
			if name, ok := volumes[m.Name]; !ok || m.Name == "config" && name != config.Metadata.Name {
				t.Errorf("%s: no volume %s, or of another ConfigMap (%q)", c.Name, m.Name, name)
			}
		}
	}

	program := filepath.Join(t.TempDir(), "tapgate")
	sh(t, `go build -o "$1" ./cmd/tapgate`, program)
	for _, c := range containers {
		sh(t, `"$1" "$2" --help`, program, c.Args[0])
	}
	l := lab.ForTest(t)
	bpffs, err := l.MountBPFFS()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"the ConfigMap's": filepath.Join(l.Dir, "configmap.yaml"), "the package's": repository + "/scripts/package/tapgate.yaml"}
	if err := os.WriteFile(files["the ConfigMap's"], []byte(config.Data["tapgate.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	for whose, file := range files {
		cmd := l.Gateway.Command(context.Background(), program, "check", "-f", file, "--netns", l.Gateway.Name, "--bpffs", bpffs)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "can be put in force") {
			t.Errorf("%s configuration: %v\n%s", whose, err, out)
		}
	}
}

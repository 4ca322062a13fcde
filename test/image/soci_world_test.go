package image

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

// sociWorld is a machine as SOCI knows it: its tool and its snapshotter as pinned in
// tools/soci/go.mod, and a containerd that has images and runs nothing.
type sociWorld struct {
	t            testing.TB
	dir, root    string // root is SOCI's, of a subtest
	socket       string
	tool, client string
	contents     string // where SOCI keeps what it makes: containerd or soci
}

func newSOCIWorld(t testing.TB) *sociWorld {
	t.Helper()
	dir := instance.Dir(t)
	w := &sociWorld{
		t: t, dir: dir, socket: filepath.Join(dir, "socket"),
		tool:   ocitest.Tool(t, "soci", "soci", "github.com/awslabs/soci-snapshotter/cmd/soci", "CGO_ENABLED=1"),
		client: ocitest.Tool(t, "soci", "soci-client", "./client", "CGO_ENABLED=1"),
	}
	t.Cleanup(func() {
		if err := instance.Sweep(dir); err != nil && !t.Failed() {
			t.Errorf("left behind: %v", err)
		}
	})
	config := filepath.Join(dir, "containerd.toml")
	if err := os.WriteFile(config, []byte("version = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	cmd := exec.Command(ocitest.Tool(t, "soci", "containerd", "./containerd", "CGO_ENABLED=0"), "--config", config,
		"--root", filepath.Join(dir, "containerd"), "--state", filepath.Join(dir, "state"), "--address", w.socket, "--log-level", "warn")
	cmd.Env, cmd.Stderr = w.environment(), &told
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("end containerd: %v: %s", err, told.String())
		}
	})
	instance.Eventually(t, ocitest.Patience, func() error {
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return w
}

// in is the machine for a subtest, with nothing that SOCI made or fetched before.
func (w *sociWorld) in(t testing.TB, contents string) *sociWorld {
	other := *w
	other.t, other.contents = t, contents
	other.root = filepath.Join(w.dir, strings.ReplaceAll(t.Name(), "/", "-"))
	return &other
}

// environment has times in UTC: SOCI writes them in local time. And it has no logins.
func (w *sociWorld) environment() []string {
	return append(os.Environ(), "TZ=UTC", "HOME="+w.dir, "DOCKER_CONFIG="+w.dir, "OTEL_TRACES_EXPORTER=none")
}

func (w *sociWorld) run(program string, args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), program, args...)
	var told bytes.Buffer
	cmd.Env, cmd.Stderr = w.environment(), &told
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("%s %v: %v: %s", program, args, err, told.String())
	}
	return string(out)
}

// soci runs SOCI's tool.
func (w *sociWorld) soci(args ...string) string {
	w.t.Helper()
	return w.run(w.tool, append([]string{"--address", w.socket, "--root", w.root, "--content-store", w.contents}, args...)...)
}

// lazily mounts the layers with SOCI's snapshotter, by the index of the version that it
// finds in the registry; use is called with where. Nothing is told of the index.
func (w *sociWorld) lazily(ref, manifest, version string, layers []string, use func(dir string)) {
	w.t.Helper()
	at := w.root + "-layers"
	var told bytes.Buffer
	cmd := exec.CommandContext(w.t.Context(), w.client, append([]string{"mount", w.root, ref, manifest, version, at}, layers...)...)
	cmd.Env, cmd.Stderr = w.environment(), &told
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	defer func() { // whatever use does
		if err := errors.Join(err, in.Close(), cmd.Wait()); err != nil || line != "mounted\n" {
			w.t.Errorf("SOCI's mount: %v: %s", err, told.String())
		}
	}()
	if err == nil {
		use(at)
	}
}

// registries are one that lists what refers to an image, and one that does not, where a
// tag does (distribution-spec, "Unavailable Referrers API").
var registries = map[string]func(t testing.TB) (host string){
	"referrers": func(t testing.TB) string {
		return ocitest.NewFor(t, registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))).Host()
	},
	"tag": func(t testing.TB) string { return ocitest.Real(t, "") },
}

// pushTo pushes the image to a host and returns its reference.
func (p *packed) pushTo(t testing.TB, host string) string {
	t.Helper()
	ref := host + "/some/image:plain"
	ocitest.Push(t, ref, p.Image, authn.Anonymous)
	return ref
}

// digests are those of the image's layers.
func (p *packed) digests(t testing.TB) (list []string) {
	t.Helper()
	for _, l := range p.layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d.String())
	}
	return list
}

// imageOf is the descriptor and the manifest of the image that a registry has as ref,
// in an index or not.
func imageOf(t testing.TB, ref string) (ocispec.Descriptor, ocispec.Manifest) {
	t.Helper()
	at, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(at)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: string(got.MediaType), Digest: digestOf(got.Manifest), Size: got.Size}
	if got.MediaType.IsIndex() {
		var index ocispec.Index
		if err := json.Unmarshal(got.Manifest, &index); err != nil {
			t.Fatal(err)
		}
		d = index.Manifests[0]
		if got, err = remote.Get(at.Context().Digest(d.Digest.String())); err != nil {
			t.Fatal(err)
		}
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(got.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	return d, m
}

// layersAt compares what SOCI mounted with the tars of the layers: each regular file.
func (p *packed) layersAt(t testing.TB, dir string) (files int) {
	t.Helper()
	for n, l := range p.layers {
		for _, f := range regular(t, l.tar) {
			got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(n), f.name))
			if err != nil || !bytes.Equal(got, f.data) {
				t.Errorf("layer %d, %s: %d bytes, want %d: %v", n, f.name, len(got), len(f.data), err)
			}
			files++
		}
	}
	return files
}

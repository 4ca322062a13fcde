package keeper

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/keeper/keepertest"
)

const systemdUnit = `[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
ExecStart=%[1]s
Environment=%[2]s=1 %[3]s=suicidal
StandardOutput=append:%[4]s
Restart=on-failure
RestartSec=0
FileDescriptorStoreMax=16
`

func TestSystemdHoldsDescriptors(t *testing.T) {
	dir := t.TempDir()
	units, out := filepath.Join(dir, "units"), filepath.Join(dir, "out")
	if err := os.Mkdir(units, 0o700); err != nil {
		t.Fatal(err)
	}
	unit := fmt.Sprintf(systemdUnit, self(t), testRole, testWorker, out)
	if err := os.WriteFile(filepath.Join(units, "lacuna-test.service"), []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := keepertest.Systemd(ctx, t, dir, "lacuna-test.service", "--net")
	var log bytes.Buffer // with systemd's own messages in dir/console
	cmd.Stdout, cmd.Stderr = &log, &log
	runErr := cmd.Run()
	lines, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("%v; systemd: %v\n%s", err, runErr, log.Bytes())
	}
	text := string(lines)
	if runErr != nil {
		t.Errorf("systemd: %v\n%s", runErr, log.Bytes())
	}
	for i, want := range []string{"held= count=1\n", "held=" + allHeld + " count=2\n", "held=" + allHeld + " count=3\n",
		"held=event,extra,pipe-r,pipe-w,table count=4\n", "held=" + allHeld + " count=5\n", "drained 5 5\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("line %d: no %q", i, want)
		}
	}
	if t.Failed() {
		t.Logf("workers:\n%s\nsystemd:\n%s", text, log.Bytes())
	}
}

func TestUnitFileIsValid(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("probe systemd-analyze: %v", err)
	}
	unit, err := os.ReadFile("../../packaging/lacuna.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program may not be installed here.
	path := filepath.Join(t.TempDir(), "lacuna.service")
	unit = bytes.ReplaceAll(unit, []byte("/usr/local/bin/lacuna"), []byte("/bin/true"))
	if err := os.WriteFile(path, unit, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		// Known from systemd 254 on.
		if strings.Contains(line, "lacuna.service") && !strings.Contains(line, "FileDescriptorStorePreserve") {
			t.Errorf("complaint: %s", line)
		}
	}
}

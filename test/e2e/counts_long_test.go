//go:build long

package e2e

import (
	"os/exec"
	"path/filepath"
)

// How often things happen where time is not short.
const (
	workerKills   = 200
	upgrades      = 200
	bindKills     = 50
	bindWorkerEnd = 20
	attachedFiles = 2000
)

// realFile makes the file that nginx serves: Debian's kernel source where it
// can be had.
func realFile(path string) error {
	cmd := exec.Command("sh", "-c", `apt-get -q download "$(apt-cache depends linux-source | sed -n 's/.*Depends: //p')" && mv linux-source-*.deb "$1"`, "sh", path)
	cmd.Dir = filepath.Dir(path)
	if cmd.Run() == nil {
		return nil
	}
	return tarFile(path)
}

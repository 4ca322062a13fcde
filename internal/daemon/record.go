package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/durable"
)

// recordVersion is the version of records that this program reads and writes.
const recordVersion = 1

// Kinds of records.
const (
	kindAttach = "attach"
	kindBind   = "bind"
	kindMount  = "mount"
)

// record says, in a file below the cache root, that something is served. It is
// durable before what it records is done, and goes when that has been undone: a
// successor, or the next start after a crash, finds what to go on with or undo.
type record struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	// Path of the attached file, the bound directory or the mounted one.
	Path string `json:"path"`
	// Left is what a mount goes by that is unmounted and still in use, once something
	// else is served at its path; else empty. No path is like it.
	Left string `json:"left,omitempty"`
	// Object, for an attached file.
	Object string `json:"object,omitempty"`
	// Size of the object in bytes.
	Size int64 `json:"size,omitempty"`
	// Placeholder: the file or directory was absent, and an empty one made to mount on.
	Placeholder bool `json:"placeholder,omitempty"`
	// Forget: the object cannot be recognised again and goes with its last file.
	Forget bool `json:"forget,omitempty"`
	// Superblock names the filesystem that shows it (see mount.Alive), and Device is
	// st_dev of its files; empty in a record from before the machine was restarted.
	Superblock string `json:"superblock,omitempty"`
	Device     uint64 `json:"device,omitempty"`
	// Boot is the run of the machine that Superblock and Device are of.
	Boot string `json:"boot,omitempty"`
	// Plan is the key of a mounted image's plan, Mount what was asked for.
	Plan  string                `json:"plan,omitempty"`
	Mount *control.MountRequest `json:"mount,omitempty"`
	// Devnode is the bound directory's socket.
	Devnode string `json:"devnode,omitempty"`
	// Tag is what the daemon on the devnode last called itself.
	Tag string `json:"tag,omitempty"`
}

// key is what it goes by among the records and in the instance's maps.
func (rec *record) key() string {
	if rec.Left != "" {
		return rec.Left
	}
	return rec.Path
}

// records is the folder of an instance's records.
type records struct{ dir string }

func openRecords(root string) (records, error) {
	r := records{filepath.Join(root, "served")}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return r, fmt.Errorf("open records: %w", err)
	}
	return r, nil
}

func (r records) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(r.dir, hex.EncodeToString(sum[:16])+".json")
}

// put makes rec durable.
func (r records) put(rec record) error {
	rec.Version = recordVersion
	boot, err := bootID()
	if err != nil {
		return fmt.Errorf("record %s: %w", rec.Path, err)
	}
	rec.Boot = boot
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record %s: %w", rec.Path, err)
	}
	name := r.name(rec.key())
	if err := durable.ReplaceBytes(name, append(b, '\n')); err != nil {
		return fmt.Errorf("record %s: %w", rec.Path, err)
	}
	return nil
}

// remove takes the record with that key away. It is not synced: a record that comes
// back after a power loss is of something that is not there, and is undone again.
func (r records) remove(key string) error {
	if err := os.Remove(r.name(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of %s: %w", key, err)
	}
	return nil
}

// list returns all records that can be read; the others are reported in err and
// left where they are.
func (r records) list() (list []record, err error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name := filepath.Join(r.dir, e.Name())
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		rec, err := readRecord(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, rec)
	}
	return list, errors.Join(errs...)
}

func readRecord(name string) (rec record, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return rec, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("read record %s: %w", name, err)
	}
	if rec.Version != recordVersion {
		return rec, fmt.Errorf("read record %s: version %d, this program knows %d", name, rec.Version, recordVersion)
	}
	boot, err := bootID()
	if err != nil {
		return rec, fmt.Errorf("read record %s: %w", name, err)
	}
	if rec.Boot != boot {
		// The kernel counts both from the start again: they name others now.
		rec.Superblock, rec.Device = "", 0
	}
	return rec, nil
}

// bootID is the machine's name for the time since it was started (random(4)).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

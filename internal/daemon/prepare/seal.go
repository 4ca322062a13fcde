package prepare

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

var (
	// ErrDamaged: a file is not what was written.
	ErrDamaged = errors.New("damaged")
	// errOld: a file is of an earlier version, which this program does not use.
	errOld = errors.New("of an earlier version")
)

// sealed is the form of the files of JSON.
type sealed struct {
	Version int `json:"version"`
	// Sum is the SHA-256 of Content as it stands there.
	Sum     string          `json:"sum"`
	Content json.RawMessage `json:"content"`
}

// seal writes v with its checksum.
func seal(w io.Writer, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b, err := sealBytes(content)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func sealBytes(content []byte) ([]byte, error) {
	sum := sha256.Sum256(content)
	b, err := json.Marshal(sealed{planVersion, hex.EncodeToString(sum[:]), content})
	return append(b, '\n'), err
}

// unseal reads into v what seal wrote: ErrDamaged where it is something else.
func unseal(name string, v any) error {
	b, err := readFile(name)
	if err != nil {
		return err
	}
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s: %w: %w", filepath.Base(name), ErrDamaged, err)
	}
	again, err := sealBytes(s.Content)
	switch {
	case s.Version > planVersion:
		return fmt.Errorf("%s: version %d, this program knows %d", filepath.Base(name), s.Version, planVersion)
	case s.Version < planVersion:
		return fmt.Errorf("%s: version %d: %w", filepath.Base(name), s.Version, errOld)
	case err != nil || !bytes.Equal(again, b): // also where only its form is another
		return fmt.Errorf("%s: %w", filepath.Base(name), ErrDamaged)
	}
	if err := json.Unmarshal(s.Content, v); err != nil {
		return fmt.Errorf("%s: %w: %w", filepath.Base(name), ErrDamaged, err)
	}
	return nil
}

// maxSealed bounds the files of JSON: a manifest of the largest size that is accepted
// makes a plan far below it.
const maxSealed = 64 << 20

// readFile reads a file of JSON.
func readFile(name string) (b []byte, err error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if b, err = io.ReadAll(io.LimitReader(f, maxSealed+1)); err == nil && len(b) > maxSealed {
		err = fmt.Errorf("%s: more than %d bytes: %w", filepath.Base(name), maxSealed, ErrDamaged)
	}
	return b, err
}

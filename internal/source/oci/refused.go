package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/lacunafs/lacuna/internal/source/ranged"
)

const (
	refusalLimit = 16 << 10 // bytes of an answer that are looked at
	saidLimit    = 200      // characters of it that are told
)

// refused is the error of an answer that is no success, with what the registry says.
func refused(a *ranged.Answer) error {
	// What cannot be read of it says nothing; the status alone is the error then.
	text, readErr := io.ReadAll(io.LimitReader(a.Body, refusalLimit))
	err := a.Refuse(ranged.ErrStatus)
	if said := saidIn(text); readErr == nil && said != "" {
		return fmt.Errorf("%w (%s)", err, said)
	}
	return err
}

// saidIn is what a registry's refusal says (distribution-spec, "Error Codes"), as one
// line of printable text; empty: nothing that is known.
func saidIn(text []byte) string {
	var told struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(text, &told) != nil || len(told.Errors) == 0 {
		return ""
	}
	first := told.Errors[0]
	said := first.Message
	if said == "" {
		said = strings.ToLower(strings.ReplaceAll(first.Code, "_", " "))
	}
	said = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, said)
	if all := []rune(said); len(all) > saidLimit {
		said = string(all[:saidLimit]) + "..."
	}
	return strings.TrimSpace(said)
}

package oci

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestSaidIn(t *testing.T) {
	for text, want := range map[string]string{
		`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":"x"}]}`: "manifest unknown",
		`{"errors":[{"code":"NAME_UNKNOWN"}]}`:                                               "name unknown",
		`{"errors":[{"message":"a\u001b[31m\nb"}]}`:                                          "a [31m b",
		`{"errors":[]}`: "",
		`<html>`:        "",
		"":              "",
	} {
		if got := saidIn([]byte(text)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// FuzzSaidIn wants of every answer a short printable line.
func FuzzSaidIn(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no\nway"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		said := saidIn(text)
		if utf8.RuneCountInString(said) > saidLimit+3 || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q", said)
		}
	})
}

func TestAssumedTag(t *testing.T) {
	for text, want := range map[string]bool{
		"registry.example:5000/app": true, "app": true,
		"app:latest": false, "registry.example/app:1": false, "app@" + someDigest: false,
		"oci-layout:/x": false,
	} {
		r, err := parseReference(text, func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		if got := r.assumed(text); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

package pax_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/pax"
)

func TestXattrs(t *testing.T) {
	got, err := pax.Xattrs(map[string]string{
		"path": "x", "SCHILY.acl.access": "user::rw-", "SCHILY.xattr.user.a": "\x00\xff", "SCHILY.xattr.user.both": "star",
		"LIBARCHIVE.xattr.user.both": "bGliYXJjaGl2ZQ", "LIBARCHIVE.xattr.user.%62": "Yg==",
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b toc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	want := []toc.Xattr{{Name: "user.a", Value: "\x00\xff"}, {Name: "user.b", Value: "b"}, {Name: "user.both", Value: "star"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, records := range []map[string]string{{"LIBARCHIVE.xattr.%zz": ""}, {"LIBARCHIVE.xattr.user.x": "!"}} {
		if _, err := pax.Xattrs(records); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%q: %v", records, err)
		}
	}
}

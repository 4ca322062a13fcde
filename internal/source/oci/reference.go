package oci

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// The transports of references that are no registry's, as skopeo writes them.
const (
	layoutPrefix  = "oci-layout:"
	archivePrefix = "docker-archive:"
)

// reference is what a text names.
type reference struct {
	// registry is its name, such as docker.io; empty: path is meant.
	registry, repository string
	path                 string // of a layout's directory or an archive
	archive              bool   // path is a docker-archive
	tag                  string // may be empty where digest or path is not
	digest               digest.Digest
}

// place is the reference without tag and digest.
func (r reference) place() string {
	switch {
	case r.archive:
		return archivePrefix + r.path
	case r.registry == "":
		return layoutPrefix + r.path
	}
	return r.registry + "/" + r.repository
}

// String is the reference in full.
func (r reference) String() string {
	s := r.place()
	if r.digest != "" {
		return s + "@" + r.digest.String()
	}
	if r.tag != "" {
		s += ":" + r.tag
	}
	return s
}

// assumed tells whether the reference, of a registry, has a tag that s does not say.
func (r reference) assumed(s string) bool {
	return r.registry != "" && r.digest == "" && !strings.HasSuffix(s, ":"+r.tag)
}

// ErrReference: what is said to name an image does not have the form of a reference.
var ErrReference = errors.New("malformed reference")

// parseReference reads the forms that Open has. exists tells whether there is a
// file, because paths may contain colons.
func parseReference(s string, exists func(string) bool) (reference, error) {
	if rest, ok := strings.CutPrefix(s, layoutPrefix); ok {
		return parsePath(rest, false, exists)
	}
	if rest, ok := strings.CutPrefix(s, archivePrefix); ok {
		return parsePath(rest, true, exists)
	}
	if scheme, _, found := strings.Cut(s, "://"); found {
		return reference{}, fmt.Errorf("%w: it is written without %s://", ErrReference, scheme)
	}
	ref, err := name.ParseReference(s, name.WeakValidation)
	if err != nil {
		return reference{}, fmt.Errorf("%w: %s", ErrReference, whyMalformed(s))
	}
	r := reference{registry: ref.Context().RegistryStr(), repository: ref.Context().RepositoryStr()}
	if r.registry == name.DefaultRegistry {
		r.registry = dockerHub
	}
	switch ref := ref.(type) {
	case name.Digest:
		r.digest, err = digest.Parse(ref.DigestStr())
		if err != nil {
			return reference{}, fmt.Errorf("%w: %s", ErrReference, whyMalformed(s))
		}
	case name.Tag:
		r.tag = ref.TagStr()
	}
	if !r.wellFormed() {
		return reference{}, fmt.Errorf("%w: %s", ErrReference, whyMalformed(s))
	}
	return r, nil
}

// Forms of the parts of a reference (distribution-spec, "Pulling manifests"), which
// package name does not look at so closely.
var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}$`)
	registryForm   = regexp.MustCompile(`^([0-9A-Za-z][0-9A-Za-z.-]*|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}))?$`)
)

func (r reference) wellFormed() bool {
	host := registryForm.FindStringSubmatch(r.registry)
	if host == nil || !repositoryForm.MatchString(r.repository) || r.digest == "" && !tagForm.MatchString(r.tag) {
		return false
	}
	port, err := strconv.Atoi(cmp.Or(host[3], "443"))
	return err == nil && port > 0 && port <= 65535
}

// CheckReference tells, without asking anybody, whether ref may name an image.
func CheckReference(ref string) error {
	if _, err := parseReference(ref, exists); err != nil {
		return fmt.Errorf("open image %q: %w", ref, err)
	}
	return nil
}

// SplitReference is the place of an image, as Image.Place says it, and its tag, which is
// empty where the reference has a digest, or is a path without one.
func SplitReference(ref string) (place, tag string, err error) {
	r, err := parseReference(ref, exists)
	if err != nil {
		return "", "", fmt.Errorf("open image %q: %w", ref, err)
	}
	if r.archive {
		_, r.tag, _ = cutLast(r.tag, ":") // which is NAME:TAG
	}
	return r.place(), r.tag, nil
}

// IsRegistry tells whether a place is in a registry.
func IsRegistry(place string) bool {
	return !strings.HasPrefix(place, layoutPrefix) && !strings.HasPrefix(place, archivePrefix)
}

// whyMalformed says what is wrong with what is no reference of a registry.
func whyMalformed(s string) string {
	name, dgst, hasDigest := strings.Cut(s, "@")
	_, parseErr := digest.Parse(dgst)
	switch {
	case strings.TrimSpace(s) == "":
		return "it is empty"
	case strings.ContainsFunc(s, unicode.IsSpace):
		return "there is a blank in it"
	case strings.Contains(dgst, "@"):
		return "it has two digests"
	case hasDigest && parseErr != nil:
		return "its digest is not sha256: with 64 hexadecimal digits"
	case strings.HasPrefix(name, "/"), strings.HasPrefix(name, "."):
		return "it is a path"
	}
	kind, rest, _ := strings.Cut(name, ":")
	if slices.Contains([]string{"oci", "oci-archive", "docker", "docker-daemon", "dir", "containers-storage"}, kind) && strings.Contains(rest, "/") {
		return fmt.Sprintf("images are not read from %s:", kind)
	}
	i := strings.LastIndexByte(name, ':')
	if tag := name[i+1:]; i >= 0 && !strings.Contains(tag, "/") {
		if name = name[:i]; !tagForm.MatchString(tag) {
			return fmt.Sprintf("%q is no tag", tag)
		}
	}
	if _, repository, _ := strings.Cut(name, "/"); repository != strings.ToLower(repository) || name != strings.ToLower(name) && repository == "" {
		return "repositories are written in lower case"
	}
	return fmt.Sprintf("%q is no registry and repository", name)
}

// parsePath reads PATH, PATH:TAG and, of layouts, PATH@DIGEST. Where several
// readings are possible, the longest path that exists is meant.
func parsePath(s string, archive bool, exists func(string) bool) (reference, error) {
	r := reference{path: s, archive: archive}
	if exists(s) {
		return r, r.check()
	}
	if path, dgst, ok := cutLast(s, "@"); ok && !archive {
		if d, err := digest.Parse(dgst); err == nil {
			r.path, r.digest = path, d
			return r, r.check()
		}
	}
	for end := len(s); ; {
		i := strings.LastIndexByte(s[:end], ':')
		if i < 0 {
			break
		}
		if exists(s[:i]) {
			r.path, r.tag = s[:i], s[i+1:]
			return r, r.checkTag()
		}
		end = i
	}
	// Nothing there: the last colon is a tag's unless a directory follows.
	if path, tag, ok := cutLast(s, ":"); ok && !strings.Contains(tag, "/") {
		r.path, r.tag = path, tag
		return r, r.checkTag()
	}
	return r, r.check()
}

func (r reference) checkTag() error {
	if r.tag == "" {
		return fmt.Errorf("%w: the tag is empty", ErrReference)
	}
	return r.check()
}

func (r reference) check() error {
	if r.path == "" {
		return fmt.Errorf("%w: a path is missing", ErrReference)
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// short is a digest as messages show it.
func short(d digest.Digest) string {
	algorithm, hex, ok := strings.Cut(d.String(), ":")
	if !ok || len(hex) < 12 {
		return fmt.Sprintf("%q", d)
	}
	return algorithm + ":" + hex[:12]
}

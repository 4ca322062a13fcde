package oci

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is what an image is for, in the names of GOOS and GOARCH.
type platform struct{ os, arch, variant string }

// String is empty where nothing is said.
func (p platform) String() string {
	if p == (platform{}) {
		return ""
	}
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// ErrPlatform: what is said to name a platform does not have the form.
var ErrPlatform = errors.New("malformed platform")

// platformPart is what os, architecture and variant are written with
// (github.com/containerd/platforms, specifierRe).
var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// CheckPlatform tells whether s names a platform; empty is this machine's.
func CheckPlatform(s string) error {
	_, err := parsePlatform(s)
	return err
}

// RunsHere tells whether this machine is one that images for the platform are made
// for; those that do not say are made for any.
func RunsHere(of string) bool {
	here, err := parsePlatform("")
	p, err2 := parsePlatform(of)
	return err != nil || err2 != nil || of == "" || here.runs(p) > 0
}

// parsePlatform reads os/arch or os/arch/variant; empty is this machine's.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return normal(platform{os: runtime.GOOS, arch: runtime.GOARCH}), nil
	}
	parts := strings.Split(s, "/")
	malformed := slices.ContainsFunc(parts, func(p string) bool { return !platformPart.MatchString(p) })
	if len(parts) < 2 || len(parts) > 3 || malformed {
		return platform{}, fmt.Errorf("%w: %q is not os/arch or os/arch/variant", ErrPlatform, s)
	}
	p := platform{os: parts[0], arch: parts[1]}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	return normal(p), nil
}

func platformOf(p *v1.Platform) platform {
	if p == nil {
		return platform{}
	}
	return normal(platform{p.OS, p.Architecture, p.Variant})
}

// normal writes what has several spellings in one, as containerd does
// (github.com/containerd/platforms): arm64 is v8, amd64 is v1, arm is v7.
func normal(p platform) platform {
	p.os, p.arch, p.variant = strings.ToLower(p.os), strings.ToLower(p.arch), strings.ToLower(p.variant)
	switch p.arch {
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	case "i386":
		p.arch = "386"
	case "armhf":
		p.arch = "arm"
	case "armel":
		p.arch, p.variant = "arm", "v6"
	}
	switch {
	case p.arch == "arm64" && (p.variant == "v8" || p.variant == "8"),
		p.arch == "amd64" && p.variant == "v1":
		p.variant = ""
	case p.arch == "arm" && p.variant == "":
		p.variant = "v7"
	case p.arch == "arm" && len(p.variant) == 1:
		p.variant = "v" + p.variant
	}
	return p
}

// runs tells how well an image for q runs where p is asked for: 0 not at all, more is
// better. A machine of one variant runs images of the lower ones.
func (p platform) runs(q platform) int {
	if p.os != q.os || p.arch != q.arch {
		return 0
	}
	if p.variant == q.variant {
		return 100
	}
	have, asked := variantNumber(q), variantNumber(p)
	if have < 0 || asked < 0 || have > asked {
		return 0
	}
	return 1 + have
}

// variantNumber is n of a variant vn; -1: it is none.
func variantNumber(p platform) int {
	v := strings.TrimPrefix(p.variant, "v")
	switch {
	case p.variant == "" && p.arch == "amd64":
		return 1
	case p.variant == "" && p.arch == "arm64":
		return 8
	case len(v) == 1 && v[0] >= '0' && v[0] <= '9':
		return int(v[0] - '0')
	}
	return -1
}

// choose returns the image of an index that is for p.
func choose(list []v1.Descriptor, p platform) (v1.Descriptor, error) {
	best, score := -1, 0
	var there []string
	for i, d := range list {
		q := platformOf(d.Platform)
		if !mayBeImage(d) || q.os == "" {
			continue
		}
		there = append(there, q.String())
		if s := p.runs(q); s > score {
			best, score = i, s
		}
	}
	switch {
	case best >= 0:
		return list[best], nil
	case nameless(list) >= 0:
		return list[nameless(list)], nil // its configuration says what it is for
	case len(there) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w for %s: the index names no platform", ErrNoPlatform, p)
	}
	slices.Sort(there)
	return v1.Descriptor{}, fmt.Errorf("%w for %s; there are %s", ErrNoPlatform, p, strings.Join(slices.Compact(there), ", "))
}

// mayBeImage tells images from what may lie beside them: indices of layers, which have a
// type and may have a platform, as those of SOCI, and attestations (BuildKit,
// docs/attestations/attestation-storage.md).
func mayBeImage(d v1.Descriptor) bool {
	return (d.ArtifactType == "" || d.ArtifactType == v1.MediaTypeImageConfig) && platformOf(d.Platform).os != "unknown" &&
		d.Annotations["vnd.docker.reference.digest"] == ""
}

// nameless is where an index has its only image, if that names no platform; -1: there is
// no such one.
func nameless(list []v1.Descriptor) int {
	only := -1
	for i, d := range list {
		switch {
		case !mayBeImage(d):
			continue
		case only >= 0 || platformOf(d.Platform).os != "":
			return -1
		}
		only = i
	}
	return only
}

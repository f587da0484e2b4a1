package broker

import (
	"errors"
	"fmt"
	"strings"
)

// The forms of the names of identities. Policies, the operator's file, proofs, the
// API, the pages and the command line check names with these functions alone.

const (
	spiffeScheme = "spiffe://"

	maxSPIFFEID    = 2048 // bytes (SPIFFE-ID, section 2.3)
	maxTrustDomain = 255  // bytes (SPIFFE-ID, section 2.1)
	maxProvider    = 32
	maxSubject     = 255 // OpenID Connect Core 1.0, section 2
)

// ParseSPIFFEID splits a SPIFFE ID into its trust domain, "acme.test", and its
// path, "agent/triage" (SPIFFE-ID, section 2). The path of a trust domain's own ID
// is empty. There is one spelling of an ID: no upper-case trust domain, no
// percent-encoding, no empty or relative segment.
func ParseSPIFFEID(id string) (domain, path string, err error) {
	rest, ok := strings.CutPrefix(id, spiffeScheme)
	if !ok {
		return "", "", fmt.Errorf("%s is not a SPIFFE ID: it must start with %s", quoted(id), spiffeScheme)
	}
	if len(id) > maxSPIFFEID {
		return "", "", fmt.Errorf("%s is longer than the %d bytes of a SPIFFE ID", quoted(id), maxSPIFFEID)
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if err := CheckTrustDomain(domain); err != nil {
		return "", "", err
	}
	if !hasPath {
		return domain, "", nil
	}
	for rest, more := path, true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		if err := checkSegment(segment); err != nil {
			return "", "", fmt.Errorf("%s is not a SPIFFE ID: %w", quoted(id), err)
		}
	}
	return domain, path, nil
}

// Errors of a segment of a path.
var (
	errEmptySegment = errors.New("its path has an empty segment: remove the extra or trailing '/'")
	errDotSegment   = errors.New("its path has the segment '.' or '..'")
	errWildcard     = errors.New("there are no wildcards: a path covers everything below it")
	errPercent      = errors.New("a SPIFFE ID has no percent-encoding: write the characters themselves")
	errSegmentChars = errors.New("a segment of its path has only a-z, A-Z, 0-9, '.', '-' and '_'")
)

func checkSegment(segment string) error {
	switch segment {
	case "":
		return errEmptySegment
	case ".", "..":
		return errDotSegment
	}
	for i := range len(segment) {
		switch c := segment[i]; {
		case isNameChar(c), 'A' <= c && c <= 'Z':
		case c == '*':
			return errWildcard
		case c == '%':
			return errPercent
		default:
			return errSegmentChars
		}
	}
	return nil
}

// isNameChar reports whether both trust domains and paths may contain the character.
func isNameChar(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}

// CheckTrustDomain returns an error unless name is a trust domain, such as
// "acme.test" (SPIFFE-ID, section 2.1).
func CheckTrustDomain(name string) error {
	if strings.HasPrefix(name, spiffeScheme) {
		return fmt.Errorf("%s is not a trust domain: write it without %s", quoted(name), spiffeScheme)
	}
	if name == "" || len(name) > maxTrustDomain {
		return fmt.Errorf("%s is not a trust domain: it must have 1 to %d bytes", quoted(name), maxTrustDomain)
	}
	for i := range len(name) {
		if !isNameChar(name[i]) {
			return fmt.Errorf("%s is not a trust domain: use only a-z in lower case, 0-9, '.', '-' and '_'", quoted(name))
		}
	}
	return nil
}

// ParseWorkloadID is ParseSPIFFEID for the ID of a workload, or of the workloads
// below a path. It refuses the ID of a whole trust domain.
func ParseWorkloadID(id string) (domain, path string, err error) {
	domain, path, err = ParseSPIFFEID(id)
	if err == nil && path == "" {
		err = fmt.Errorf("%s is a whole trust domain, not a workload: add a path, such as %s/agent", quoted(id), id)
	}
	return domain, path, err
}

// ParsePerson splits the name of a person, "login/ana", into the OpenID provider and
// its subject.
func ParsePerson(id string) (provider, subject string, err error) {
	provider, subject, ok := strings.Cut(id, "/")
	switch {
	case !ok || strings.HasPrefix(id, spiffeScheme):
		return "", "", fmt.Errorf("%s is not a person: write <provider>/<subject>, such as login/ana", quoted(id))
	case CheckProvider(provider) != nil:
		return "", "", fmt.Errorf("%s is not a person: %w", quoted(id), CheckProvider(provider))
	case subject == "" || len(subject) > maxSubject || strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", "", fmt.Errorf("%s is not a person: after the provider it needs a subject of 1 to %d visible ASCII characters", quoted(id), maxSubject)
	}
	return provider, subject, nil
}

// CheckProvider returns an error unless name may be the name of an OpenID provider.
// It has neither a dot nor a colon, so that no SPIFFE ID, with or without its scheme,
// is the name of a person.
func CheckProvider(name string) error {
	bad := name == "" || len(name) > maxProvider || name[0] < 'a' || name[0] > 'z' ||
		strings.ContainsFunc(name, func(r rune) bool { return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-') })
	if bad {
		return fmt.Errorf("%s is not a provider name: use at most %d lower-case letters, digits and dashes, and begin with a letter", quoted(name), maxProvider)
	}
	return nil
}

// quoted returns a name from outside for an error, shortened to what a person reads.
func quoted(name string) string {
	const most = 200
	if len(name) > most {
		name = name[:most] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// DidYouMean returns the end of a message that suggests a name, or "" without one.
func DidYouMean(near string) string {
	if near == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", near)
}

// Nearest returns the name that differs from word by at most two typing errors, or "".
// A longer word may have one error per eight characters.
func Nearest(word string, names []string) (near string) {
	if len(word) > 256 {
		return ""
	}
	least := max(3, len(word)/8+1)
	for _, name := range names {
		if d := len(name) - len(word); d >= least || -d >= least {
			continue
		}
		if n := editDistance(word, name); n < least && n < len(name) {
			near, least = name, n
		}
	}
	return near
}

// editDistance returns the number of bytes that are inserted, left out or changed
// between two words (Levenshtein distance).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := before
			if a[i] != b[j] {
				changed++
			}
			before = row[j+1]
			row[j+1] = min(changed, row[j]+1, before+1)
		}
	}
	return row[len(b)]
}

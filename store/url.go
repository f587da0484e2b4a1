package store

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// scheme is how the URL of a database of SQLite begins.
const scheme = "sqlite:"

// forms are the forms of a store's URL, for errors.
const forms = "sqlite:/path/to/broker.db or " + postgresForm

// CheckURL checks a store's URL and returns what is weak about it. Errors and warnings
// never contain the password.
func CheckURL(u string) (warnings []string, err error) {
	if !isPostgres(u) {
		_, err := ParseURL(u)
		return nil, err
	}
	p, err := parsePostgresURL(u)
	if err != nil {
		return nil, err
	}
	if weak := p.weak(); weak != "" {
		warnings = append(warnings, weak)
	}
	return warnings, nil
}

// IsPostgres reports whether a store's URL names a database of PostgreSQL.
func IsPostgres(u string) bool { return isPostgres(u) }

// ParseURL returns the path of the database that a URL of SQLite names, such as
// "sqlite:broker.db".
func ParseURL(u string) (path string, err error) {
	path, ok := strings.CutPrefix(u, scheme)
	switch {
	case !ok:
		return "", notAURL(u)
	case strings.HasPrefix(path, "//"), strings.Contains(path, "://"):
		return "", fmt.Errorf("the URL of the store begins with sqlite: and names a server: write %s", forms)
	// A query, and the scheme of SQLite's own URIs, would be part of a file's name.
	case path == "", strings.HasPrefix(path, "file:"), strings.Contains(path, "?"):
		return "", fmt.Errorf("the store %q is not of the form sqlite:/path/to/broker.db", u)
	}
	return path, nil
}

// schemeForm matches the start of a URL with a scheme.
var schemeForm = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]{0,20}):`)

// notAURL describes what was written instead of a store's URL. It does not quote the text,
// which may contain a password.
func notAURL(u string) error {
	switch m := schemeForm.FindStringSubmatch(u); {
	case u == "":
		return fmt.Errorf("the store has no URL: write %s", forms)
	case m != nil && (m[1] == "postgres" || m[1] == "postgresql"):
		return fmt.Errorf("the URL of the store lacks the // after %s: write %s, or sqlite:/path for a file", m[0], postgresForm)
	case m != nil:
		return fmt.Errorf("the URL of the store has the unknown scheme %q: write %s", m[1], forms)
	case strings.Contains(u, "host=") || strings.Contains(u, "dbname="):
		return fmt.Errorf("the store is written as keywords: write it as a URL, %s", postgresForm)
	case strings.ContainsAny(u, "@="):
		return fmt.Errorf("the store is not a URL: write %s", forms)
	}
	return fmt.Errorf("the store %q is a path and not a URL: write sqlite:%s", u, u)
}

// Redacted returns a store's URL without its password, for logs, errors and output. Of a
// URL that is not valid it returns only the scheme.
func Redacted(u string) string {
	if strings.HasPrefix(u, scheme) && !strings.Contains(u, "://") {
		return u
	}
	if p, err := parsePostgresURL(u); err == nil {
		return p.String()
	}
	if m := schemeForm.FindString(u); m != "" {
		return m + "…"
	}
	return "…"
}

// HasPassword reports whether the text of a store's URL contains a password. Of a URL that
// is not valid, it reports whether it may.
func HasPassword(u string) bool {
	p, err := parsePostgresURL(u)
	if err != nil {
		_, authority, _ := strings.Cut(u, "://")
		user := authority[:max(0, strings.LastIndex(authority, "@"))]
		return strings.Contains(user, ":") || strings.Contains(u, "password=")
	}
	return p.password != ""
}

// Expand returns the URL that a reference names: env:NAME is in a variable of the
// environment, file:PATH is the content of a file that only its owner can read. It returns
// any other text unchanged.
func Expand(reference string, getenv func(string) string) (string, error) {
	if name, ok := strings.CutPrefix(reference, "env:"); ok {
		u := strings.TrimSpace(getenv(name))
		if u == "" {
			return "", fmt.Errorf("the store's URL is in the variable %q, which is not set", name)
		}
		return u, nil
	}
	path, ok := strings.CutPrefix(reference, "file:")
	if !ok {
		return reference, nil
	}
	content, err := readPrivate(path)
	if err != nil {
		return "", fmt.Errorf("reading the store's URL: %w", err)
	}
	u := strings.TrimSpace(string(content))
	if u == "" || strings.ContainsAny(u, "\r\n") {
		return "", fmt.Errorf("reading the store's URL: %s must have one line, with the URL", path)
	}
	return u, nil
}

// ResolveURL returns a valid URL in which relative paths begin in a folder.
func ResolveURL(u, dir string) string {
	resolve := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	if path, err := ParseURL(u); err == nil {
		return URL(resolve(path))
	}
	p, err := parsePostgresURL(u)
	if err != nil {
		return u
	}
	for _, option := range pathOptions {
		if path := p.options[option]; path != "" && path != systemRoots {
			p.options[option] = resolve(path)
		}
	}
	return p.format(p.password)
}

// systemRoots is the value of sslrootcert that names the operating system's authorities.
const systemRoots = "system"

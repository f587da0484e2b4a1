package ui

import (
	"cmp"
	"errors"
	"html/template"
	"strings"
	"time"
)

// functions are what templates may call.
var functions = template.FuncMap{
	"static": func(name string) string { return "/ui/static/" + hashed[name] },
	"stamp":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"utc":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"short":  short,
	"first":  first,
	"joined": func(list []string) string { return strings.Join(list, ", ") },
	"brief":  brief,
	"proof":  func(method string) string { return cmp.Or(proofs[method], method) },
	"fate":   fate,
	"truth":  func(revocation string) string { return truths[revocation] },
	"dict":   dict,
	"kind":   func(kind string) string { return strings.NewReplacer(".", " ", "_", " ").Replace(kind) },
}

// dict makes one value of several, for templates within templates.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict takes names and values")
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, errors.New("dict takes names and values")
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// short gives the part of a SPIFFE ID that people tell callers apart by. The
// whole stands beside it, as a title.
func short(id string) string {
	return strings.TrimPrefix(id, "spiffe://")
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// briefLength is how many characters of a free text a list shows.
const briefLength = 160

// brief cuts a text where it has to end.
func brief(s string) string {
	runes := []rune(s)
	if len(runes) <= briefLength {
		return s
	}
	return string(runes[:briefLength]) + "…"
}

// proofs say what an identity was proved with.
var proofs = map[string]string{
	"x509-svid": "its SPIFFE certificate (X.509-SVID)",
	"jwt-svid":  "its SPIFFE token (JWT-SVID)",
	"session":   "their login",
}

// fate says what a lease's state means for its credential.
func fate(status, revocation string) string {
	switch status {
	case "revoked":
		return fates[revocation]
	case "failed":
		return "no credential came of it"
	case "abandoned":
		return "given up: nobody knows what it can still do"
	case "expired":
		return ""
	}
	return truths[revocation]
}

// fates say what ending a credential early meant.
var fates = map[string]string{
	"immediate":   "was taken back",
	"at_expiry":   "could not be taken back: only time ends it",
	"at_rotation": "could not be taken back: it works until the system rotates its password",
	"never":       "could not be taken back, and does not end",
}

// truths say what ending a credential early means.
var truths = map[string]string{
	"immediate":   "can be taken back at once",
	"pending":     "is being taken back",
	"at_expiry":   "can't be taken back: only time ends it",
	"at_rotation": "goes on working until the system rotates its password",
	"never":       "is not short-lived: nothing takes it back",
}

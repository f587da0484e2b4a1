package ui

import (
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// functions are the functions that templates may call.
var functions = template.FuncMap{
	"stamp":       func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"utc":         func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"day":         func(t time.Time) string { return t.UTC().Format("2 January 2006") },
	"credentials": credentials,
	"short":       short,
	"name":        rowName,
	"first":       first,
	"prefix":      strings.HasPrefix,
	"joined":      func(list []string) string { return strings.Join(list, ", ") },
	"isList":      func(list any) bool { return !reflect.ValueOf(list).IsNil() }, // an empty one too
	"brief":       brief,
	"inline":      inline,
	"quote":       quote,
	"proof":       func(method string) string { return cmp.Or(proofs[method], method) },
	"result":      result,
	"bound":       func(binding string) string { return bindings[binding] },
	"effect":      func(revocation string) string { return effects[revocation] },
	"dict":        dict,
	"grouped":     Grouped,
	"leftClass":   leftClass,
	"firstScopes": func(scopes []string) []string { return scopes[:min(len(scopes), scopesInRow)] },
	"moreScopes":  func(scopes []string) int { return max(len(scopes)-scopesInRow, 0) },
	"list":        func(items ...string) []string { return items },
	"share":       func(part, whole int) int { return part * 100 / max(whole, 1) },
	"count":       counted,
	"problem":     Problem,
	"severity":    func(code string) string { return cmp.Or(severities[code], "low") },
	"add":         func(a, b int) int { return a + b },
	"kind":        func(kind string) string { return strings.NewReplacer(".", " ", "_", " ").Replace(kind) },
}

// bindings are what a token is bound to.
var bindings = map[string]string{
	"mtls":         "a client certificate",
	"dpop":         "a key of the requester (DPoP)",
	"dpop or mtls": "a key of the requester (DPoP) or a client certificate",
	"impossible":   "demands that exclude each other",
}

// leftClass returns the class of a bar of time that is left to a lease that has ended or
// not.
func leftClass(ended bool) string {
	if ended {
		return "series-3"
	}
	return ""
}

// Grouped formats a number with its thousands separated.
func Grouped(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// scopesInRow is the number of scopes that a row of a list shows.
const scopesInRow = 4

// dict passes several values to a nested template.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict takes pairs of names and values")
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, errors.New("dict takes pairs of names and values")
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// problems name the problems of identities.
var problems = map[string]string{
	"orphan": "orphan", "owner_left": "owner left", "no_owner": "no owner", "ended": "access ended", "many_places": "many places",
	"never_used": "never used", "unused": "unused for 90 days", "broad": "broader than use",
}

// severities are the risks of the more serious problems.
var severities = map[string]string{"orphan": "high", "ended": "high", "owner_left": "medium", "no_owner": "medium", "many_places": "medium"}

// Problem returns the name of a problem of an identity.
func Problem(code string) string { return cmp.Or(problems[code], code) }

// Short returns the part of a SPIFFE ID that distinguishes callers.
func Short(id string) string { return short(id) }

// short returns the part of a SPIFFE ID that distinguishes callers. Templates
// show the whole ID as the element's title.
func short(id string) string {
	return strings.TrimPrefix(id, "spiffe://")
}

// Lengths of a name in a row of a list. The request's page shows the whole name.
const (
	nameStart = 40
	nameEnd   = 80
)

// rowName returns a name for a row of a list: the beginning and the end of a long one,
// which distinguish callers.
func rowName(id string) string {
	name := []rune(short(id))
	if len(name) <= nameStart+nameEnd {
		return string(name)
	}
	return string(name[:nameStart]) + "…" + string(name[len(name)-nameEnd:])
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// credentials describes how many credentials were collected.
func credentials(n int, more bool) string {
	switch {
	case more:
		return fmt.Sprintf("%d or more credentials", n)
	case n == 0:
		return "no credential was collected"
	}
	return counted(n, "credential")
}

// proofs describe the methods of authentication.
var proofs = map[string]string{
	"x509-svid":    "SPIFFE certificate (X.509-SVID)",
	"jwt-svid":     "SPIFFE token (JWT-SVID)",
	"oidc-token":   "OIDC token of its platform, without an SVID",
	"session":      "login",
	"broker-token": "access token of this broker",
}

// result describes what a lease's status means for its credential.
func result(status, revocation string) string {
	switch status {
	case "revoked":
		return results[revocation]
	case "failed":
		return "no credential was issued"
	case "abandoned":
		return "abandoned: the credential may still work"
	case "expired":
		return ""
	}
	return effects[revocation]
}

// results describe the effect that revoking a credential had.
var results = map[string]string{
	"immediate":   "revoked",
	"at_expiry":   "still works until it expires",
	"at_rotation": "still works until the system rotates the password",
	"never":       "still works: not revocable",
}

// effects describe the effect that revoking a credential would have.
var effects = map[string]string{
	"immediate":   "revocable at once",
	"pending":     "being revoked",
	"at_expiry":   "not revocable; it expires by itself",
	"at_rotation": "works until the system rotates the password",
	"never":       "not short-lived and not revocable",
}

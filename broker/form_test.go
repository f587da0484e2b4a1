package broker

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Each bound of an ask, at the largest value and one above.
func TestFormOfAnAsk(t *testing.T) {
	long := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("p", i)] = "x"
		}
		return m
	}
	scopes := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprint("s", i))
		}
		return list
	}
	for name, test := range map[string]struct {
		change func(*Ask)
		want   error
	}{
		"complete":                         {func(*Ask) {}, nil},
		"no entitlement":                   {func(a *Ask) { a.Entitlement = "" }, ErrInvalidRequest},
		"a malformed entitlement":          {func(a *Ask) { a.Entitlement = "../db" }, ErrInvalidRequest},
		"the most scopes":                  {func(a *Ask) { a.Scopes = scopes(MaxScopes) }, nil},
		"too many scopes":                  {func(a *Ask) { a.Scopes = scopes(MaxScopes + 1) }, ErrInvalidScope},
		"the longest scope":                {func(a *Ask) { a.Scopes = []string{strings.Repeat("x", MaxScopeLength)} }, nil},
		"a scope that is too long":         {func(a *Ask) { a.Scopes = []string{strings.Repeat("x", MaxScopeLength+1)} }, ErrInvalidScope},
		"an empty scope":                   {func(a *Ask) { a.Scopes = []string{""} }, ErrInvalidScope},
		"a scope with a space":             {func(a *Ask) { a.Scopes = []string{"a b"} }, ErrInvalidScope},
		"a scope with a quote":             {func(a *Ask) { a.Scopes = []string{`a"b`} }, ErrInvalidScope},
		"a scope with a backslash":         {func(a *Ask) { a.Scopes = []string{`a\b`} }, ErrInvalidScope},
		"a scope beyond ASCII":             {func(a *Ask) { a.Scopes = []string{"a\x7f"} }, ErrInvalidScope},
		"a negative ttl":                   {func(a *Ask) { a.TTL = -time.Second }, ErrInvalidTTL},
		"a ttl of part of a second":        {func(a *Ask) { a.TTL = time.Millisecond }, ErrInvalidTTL},
		"the longest duration":             {func(a *Ask) { a.Duration = MaxDuration }, nil},
		"a duration that is too long":      {func(a *Ask) { a.Duration = MaxDuration + time.Second }, ErrInvalidTTL},
		"a negative duration":              {func(a *Ask) { a.Duration = -time.Second }, ErrInvalidTTL},
		"a duration of part of a second":   {func(a *Ask) { a.Duration = time.Millisecond }, ErrInvalidTTL},
		"a start in whole seconds":         {func(a *Ask) { a.NotBefore = noon }, nil},
		"a start within a second":          {func(a *Ask) { a.NotBefore = noon.Add(1) }, ErrInvalidTTL},
		"the most parameters":              {func(a *Ask) { a.Parameters = long(MaxParameters) }, nil},
		"too many parameters":              {func(a *Ask) { a.Parameters = long(MaxParameters + 1) }, ErrInvalidParameter},
		"the longest parameters":           {func(a *Ask) { a.Parameters = map[string]string{"p": strings.Repeat("x", MaxAllParameters)} }, nil},
		"parameters that are too long":     {func(a *Ask) { a.Parameters = map[string]string{"p": strings.Repeat("x", MaxAllParameters), "q": "x"} }, ErrInvalidParameter},
		"the longest justification":        {func(a *Ask) { a.Justification = strings.Repeat("x", MaxJustification) }, nil},
		"a justification that is too long": {func(a *Ask) { a.Justification = strings.Repeat("x", MaxJustification+1) }, ErrInvalidRequest},
		"a justification of two lines":     {func(a *Ask) { a.Justification = "a\n\tb" }, nil},
		"control characters":               {func(a *Ask) { a.Justification = "a\x1b[2J" }, ErrInvalidRequest},
		"not UTF-8":                        {func(a *Ask) { a.Justification = "\xff" }, ErrInvalidRequest},
		"the first directional format":     {func(a *Ask) { a.Justification = "\u202a" }, ErrInvalidRequest},
		"the last directional format":      {func(a *Ask) { a.Justification = "\u202e" }, ErrInvalidRequest},
		"the first isolate":                {func(a *Ask) { a.Justification = "\u2066" }, ErrInvalidRequest},
		"the last isolate":                 {func(a *Ask) { a.Justification = "\u2069" }, ErrInvalidRequest},
		"characters around those":          {func(a *Ask) { a.Justification = "\u2029\u202f\u2065\u206a" }, nil},
		"the longest ticket":               {func(a *Ask) { a.Ticket = strings.Repeat("x", MaxTicket) }, nil},
		"a ticket that is too long":        {func(a *Ask) { a.Ticket = strings.Repeat("x", MaxTicket+1) }, ErrInvalidRequest},
		"a ticket of two lines":            {func(a *Ask) { a.Ticket = "a\u2028b" }, ErrInvalidRequest},
		"the longest message":              {func(a *Ask) { a.Message = strings.Repeat("x", MaxMessage) }, nil},
		"a message of 10,000 characters":   {func(a *Ask) { a.Message = strings.Repeat("x", 10_000) }, ErrInvalidMessage},
		"a message with markup":            {func(a *Ask) { a.Message = "<b onclick=x>4711</b>" }, nil},
		"a message that is reordered":      {func(a *Ask) { a.Message = "pay \u202e0001 EUR" }, ErrInvalidMessage},
		"a message with an isolate":        {func(a *Ask) { a.Message = "pay \u20660001" }, ErrInvalidMessage},
		"a message with an escape":         {func(a *Ask) { a.Message = "\x1b[31mapproved" }, ErrInvalidMessage},
		"a message of two lines":           {func(a *Ask) { a.Message = "4711\napproved by login/ciso" }, ErrInvalidMessage},
		"a message that is not UTF-8":      {func(a *Ask) { a.Message = "\xff" }, ErrInvalidMessage},
		"a negative time to wait":          {func(a *Ask) { a.WaitAtMost = -time.Second }, ErrInvalidRequest},
	} {
		ask := Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}, TTL: time.Minute, Duration: time.Hour, Justification: "because", Ticket: "T-1"}
		test.change(&ask)
		if err := ask.checkForm(); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestParametersOfAnAsk(t *testing.T) {
	e := Entitlement{Parameters: map[string]Parameter{
		"name": {Required: true, MaxLength: 4, Pattern: regexp.MustCompile(`^[a-z\x{202e}]*$`)},
		"csr":  {Lines: true},
	}}
	for name, test := range map[string]struct {
		given map[string]string
		want  error
	}{
		"the required one":      {map[string]string{"name": "abcd"}, nil},
		"none":                  {nil, ErrInvalidParameter},
		"unknown":               {map[string]string{"name": "a", "other": "b"}, ErrInvalidParameter},
		"too long":              {map[string]string{"name": "abcde"}, ErrInvalidParameter},
		"another form":          {map[string]string{"name": "A"}, ErrInvalidParameter},
		"changes the direction": {map[string]string{"name": "\u202e"}, ErrInvalidParameter},
		"a line break":          {map[string]string{"name": "a\n"}, ErrInvalidParameter},
		"lines, where allowed":  {map[string]string{"name": "a", "csr": "a\nb"}, nil},
		"control characters":    {map[string]string{"name": "a", "csr": "a\x00b"}, ErrInvalidParameter},
		"not UTF-8":             {map[string]string{"name": "a", "csr": "\xff"}, ErrInvalidParameter},
		"the longest":           {map[string]string{"name": "a", "csr": strings.Repeat("x", MaxParameter)}, nil},
		"above the longest":     {map[string]string{"name": "a", "csr": strings.Repeat("x", MaxParameter+1)}, ErrInvalidParameter},
	} {
		if err := e.checkParameters(test.given); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
}

func TestMissingParameterIsNamed(t *testing.T) {
	e := Entitlement{Parameters: map[string]Parameter{"b": {Required: true}, "a": {Required: true}, "c": {Required: true, Description: "the owner"}}}
	for missing, given := range map[string]map[string]string{
		"a is required":            {},
		"b is required":            {"a": "x"},
		"c is required: the owner": {"a": "x", "b": "x"},
	} {
		var refusal *Refusal
		if err := e.checkParameters(given); !errors.As(err, &refusal) || refusal.Detail != missing {
			t.Errorf("%v: got %v, want %q", given, err, missing)
		}
	}
}

// What a request takes from the ask, and what from the entitlement.
func TestRequestOfAnAsk(t *testing.T) {
	caller := Caller{At: noon}
	tokens := Entitlement{Name: "tickets", Scopes: []string{"a", "b"}, DefaultScopes: []string{"a"}, DefaultTTL: 10 * time.Minute, MinTTL: time.Minute, MaxTTL: 15 * time.Minute, CollectWithin: time.Hour, Audience: "https://tickets"}
	plain := Entitlement{Name: "db", DefaultTTL: time.Minute, MaxTTL: time.Hour}
	for name, test := range map[string]struct {
		e    *Entitlement
		ask  Ask
		want error
	}{
		"defaults":                  {&tokens, Ask{}, nil},
		"a token":                   {&tokens, Ask{Token: true}, nil},
		"a token for its resource":  {&tokens, Ask{Token: true, Resource: "https://tickets"}, nil},
		"a token for another":       {&tokens, Ask{Token: true, Resource: "https://other"}, ErrInvalidTarget},
		"a token, which it has not": {&plain, Ask{Token: true}, ErrInvalidTarget},
		"the shortest ttl":          {&tokens, Ask{TTL: time.Minute}, nil},
		"a shorter ttl":             {&tokens, Ask{TTL: time.Minute - time.Second}, ErrInvalidTTL},
		"a repeated scope":          {&tokens, Ask{Scopes: []string{"b", "a", "b"}}, ErrInvalidScope},
		"an unknown scope":          {&tokens, Ask{Scopes: []string{"c"}}, ErrInvalidScope},
		"scopes, which it has not":  {&plain, Ask{Scopes: []string{"a"}}, ErrInvalidScope},
		"the latest start":          {&tokens, Ask{NotBefore: noon.Add(MaxDuration)}, nil},
		"a later start":             {&tokens, Ask{NotBefore: noon.Add(MaxDuration + time.Second)}, ErrInvalidTTL},
		"a start just before":       {&tokens, Ask{NotBefore: noon.Add(-clockSlack)}, nil},
		"a start long before":       {&tokens, Ask{NotBefore: noon.Add(-clockSlack - time.Second)}, ErrInvalidTTL},
	} {
		r, err := test.e.newRequest(&caller, &test.ask)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
		if err == nil && test.e == &tokens && (r.TTLAsked != (test.ask.TTL != 0) || r.Duration != time.Hour || len(r.Scopes) != 1 || r.Scopes[0] != "a") {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	if _, err := (&Entitlement{Scopes: []string{"a"}}).newRequest(&caller, &Ask{}); !errors.Is(err, ErrInvalidScope) {
		t.Errorf("no scope and no default: got %v, want %v", err, ErrInvalidScope)
	}
}

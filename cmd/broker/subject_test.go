package main

import (
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/rogpeppe/go-internal/testscript"
)

// idJAG gets an ID-JAG of a person from the provider of the world, and writes it to a file.
func idJAG(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: idjag PERSON FILE")
	}
	resp, err := http.PostForm("http://"+ts.Getenv("LOGIN")+"/id-jag", url.Values{"person": {args[0]}})
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	token, err := io.ReadAll(io.LimitReader(resp.Body, 1<<14))
	ts.Check(err)
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("got %d %s", resp.StatusCode, token)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), token, 0o600))
}

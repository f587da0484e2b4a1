package devworld

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// repositories are those whose jobs get tokens, with the ids that GitHub would give them.
var repositories = map[string]string{"acme/shop": "74", "acme/website": "75"}

// PipelinesURL returns the issuer of the tokens of jobs.
func (a Addresses) PipelinesURL() string { return "http://" + a.Login + "/pipelines" }

// servePipelines adds the issuer of a platform that runs pipelines. Its tokens have the
// claims of GitHub Actions that say what may not change in a name. Anyone who can reach
// it gets the token of any job.
func (w *World) servePipelines(mux *http.ServeMux) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("creating the key of the pipelines: %w", err)
	}
	p := &login{issuer: w.PipelinesURL(), broker: w.URL(), key: key}
	mux.HandleFunc("GET /pipelines/.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("GET /pipelines/keys", p.keys)
	mux.HandleFunc("POST /pipelines/token", p.jobToken)
	return nil
}

// jobToken returns the token of a job. The form names the repository and the ref.
func (p *login) jobToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	repository, ref := r.PostFormValue("repository"), r.PostFormValue("ref")
	id, known := repositories[repository]
	if !known || ref == "" {
		http.Error(w, "write repository=acme/shop or acme/website, and a ref such as refs/heads/main", http.StatusBadRequest)
		return
	}
	signed, err := p.sign("JWT", jwt.MapClaims{
		"aud": p.broker, "jti": rand.Text(), "sub": "repo:" + repository + ":ref:" + ref,
		"repository": repository, "repository_id": id, "ref": ref, "event_name": "push",
	}, time.Now())
	writeToken(w, signed, err)
}

package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/internal/strictjson"
)

// fetchKeys fetches the keys of the issuer. The mutex of its keys is held. After a failure,
// the next fetch begins with the discovery document: the keys may have another address now.
func (i *workloadIssuer) fetchKeys(ctx context.Context) (set *jwks.Set, err error) {
	defer func() {
		if err != nil {
			i.found = time.Time{}
		}
	}()
	document, err := i.readKeys(ctx)
	if err != nil {
		return nil, err
	}
	set, err = jwks.Parse(document, "", "sig")
	if err == nil && len(set.Keys) == 0 {
		// A set without a usable key is valid and trusts nothing.
		i.log.WarnContext(ctx, "the issuer of workload tokens publishes no key that the broker can use: no token of it is accepted", "issuer", i.cfg.Name)
	}
	return set, err
}

func (i *workloadIssuer) readKeys(ctx context.Context) ([]byte, error) {
	if i.cfg.JWKSFile != "" {
		document, err := readFile(i.cfg.JWKSFile)
		if err != nil {
			return nil, fmt.Errorf("reading the file of keys: %w", err)
		}
		return document, nil
	}
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	if i.cfg.JWKSURI == "" && time.Since(i.found) >= metadataTTL {
		uri, err := i.discover(ctx)
		switch {
		case err == nil:
			i.jwksURI, i.found = uri, time.Now()
		case i.jwksURI == "":
			return nil, fmt.Errorf("discovery: %w", err)
		default:
			i.log.WarnContext(ctx, "the discovery document of the issuer of workload tokens can't be read: its last address of keys stays in use", "issuer", i.cfg.Name, "err", err)
		}
	}
	return i.get(ctx, i.jwksURI)
}

// discover returns the address of the keys in the issuer's metadata (OpenID Connect
// Discovery 1.0, section 4). The keys must be at the issuer's own host: a document that
// someone else could change for a moment would move trust to a host of theirs.
func (i *workloadIssuer) discover(ctx context.Context) (string, error) {
	document, err := i.get(ctx, strings.TrimSuffix(i.cfg.Issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	members, err := strictjson.Object(document, maxDepth)
	if err != nil {
		return "", fmt.Errorf("the metadata %w", err)
	}
	if text(members["issuer"]) != i.cfg.Issuer { // section 4.3
		return "", errors.New("the metadata is of another issuer: write the issuer in attest.oidc_workloads exactly as in the metadata and in the iss of tokens")
	}
	uri := text(members["jwks_uri"])
	keys, err := url.Parse(uri)
	own, _ := url.Parse(i.cfg.Issuer)
	switch {
	case err != nil || keys.Host == "" || keys.User != nil || keys.Fragment != "":
		return "", errors.New("the metadata has no valid jwks_uri")
	case keys.Scheme != own.Scheme || !strings.EqualFold(keys.Host, own.Host):
		return "", fmt.Errorf("the metadata has a jwks_uri at another host, %.100q: if it is right, write it as jwks_uri in attest.oidc_workloads", keys.Scheme+"://"+keys.Host)
	}
	return uri, nil
}

// get fetches a document. The token that authenticates the broker goes only to addresses of
// the operator's file and to the issuer's own host.
func (i *workloadIssuer) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	if i.cfg.Bearer != nil {
		token, err := i.cfg.Bearer()
		if err != nil {
			return nil, fmt.Errorf("reading the broker's own token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := i.client.Do(req)
	if err != nil {
		return nil, outbound.Cause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the issuer responded with %d", resp.StatusCode)
	}
	document, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if err == nil && len(document) > maxResponse {
		err = errors.New("the response is larger than 1 MiB")
	}
	return document, err
}

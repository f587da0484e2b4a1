package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/handoff"
)

// A handover is how a command gets its credential: by the flags of the person who starts it.
type handover struct {
	file   string
	env    bool
	chosen []string // NAME=FIELD
	fields []handoff.Variable
}

func (p *handover) add(c *cobra.Command) {
	c.Flags().BoolVar(&p.env, "env", false, "put the credential into environment variables: not renewed, and visible in /proc/PID/environ")
	c.Flags().StringArrayVar(&p.chosen, "env-var", nil, "put a field of the credential into this variable, as NAME=FIELD; can be repeated")
	c.Flags().StringVar(&p.file, "file", "", "write the credential to this file alone, and renew it there")
}

func (p *handover) check(c *cobra.Command) error {
	switch byEnv := p.env || len(p.chosen) > 0; {
	case c.Flags().Changed("file") && p.file == "": // such as an unset variable of a shell
		return usage("--file is empty: name a file, or omit --file")
	case p.file != "" && byEnv:
		return usage("--file and --env exclude each other: choose where the credential goes")
	}
	p.fields = nil
	for _, text := range p.chosen {
		v, err := handoff.ParseVariable(text)
		if err != nil {
			return usage("--env-var: %v", err)
		}
		p.fields = append(p.fields, v)
	}
	return nil
}

// A passer passes a credential to a command.
type passer interface {
	// Write makes the credential ready, in place of an earlier one.
	Write(*api.Credential) error
	// environment returns the environment of a command that gets the credential.
	environment(*api.Credential) (handoff.Environment, error)
	// renewable reports whether a running command finds a renewed credential.
	renewable() bool
	// Close removes the credential.
	Close() error
}

// passer returns the passer, before there is a credential to pass.
func (p *handover) passer() (passer, error) {
	switch {
	case p.file != "":
		file := &ownFile{path: p.file, flag: "--file", writer: "exec", mark: credentialMark}
		return byFile{file}, file.check()
	case p.env || len(p.fields) > 0:
		return byEnvironment{p}, nil
	}
	folder, err := handoff.NewFolder()
	if errors.Is(err, handoff.ErrNoMemory) {
		err = fmt.Errorf("%w; set XDG_RUNTIME_DIR to a folder in memory, or choose --file or --env", err)
	}
	return byFolder{folder}, err
}

// credentialMark marks the files of exec.
const credentialMark = "credential"

type byFile struct{ *ownFile }

func (b byFile) Write(c *api.Credential) error { return b.write(handoff.Text(c)) }
func (b byFile) renewable() bool               { return true }
func (b byFile) Close() error                  { return b.remove() }

func (b byFile) environment(c *api.Credential) (handoff.Environment, error) {
	return handoff.InFile(c, b.path), nil
}

type byFolder struct{ *handoff.Folder }

func (b byFolder) renewable() bool { return true }

func (b byFolder) environment(*api.Credential) (handoff.Environment, error) {
	return b.Environment(), nil
}

type byEnvironment struct{ *handover }

func (b byEnvironment) Write(*api.Credential) error { return nil }
func (b byEnvironment) renewable() bool             { return false }
func (b byEnvironment) Close() error                { return nil }

func (b byEnvironment) environment(c *api.Credential) (handoff.Environment, error) {
	chosen, err := handoff.InChosenVariables(c, b.fields)
	if b.env {
		standard := handoff.InVariables(c)
		chosen.Set = append(standard.Set, chosen.Set...)
	}
	return chosen, err
}

// tokenHelper is this program under the name by which "broker exec" makes it the token
// helper of the Vault command.
func tokenHelper(arg0 string, args []string, out, errs io.Writer) (code int) {
	text, err := handoff.HelpWithToken(arg0, args)
	if err == nil {
		_, err = io.WriteString(out, text)
	}
	if err != nil {
		fmt.Fprintf(errs, "broker: %v\n", err)
		return exitFailed
	}
	return 0
}

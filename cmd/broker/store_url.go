package main

import (
	"path/filepath"
	"strings"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/store"
)

// storeHelp describes the forms of a database on the command line.
const storeHelp = `A database is sqlite:PATH or postgres://USER@HOST/DATABASE, as in the operator's
file. Every user of a machine can read the command lines of its processes, so a
URL with a password is refused: name a password_file in the URL, or write the
URL in a file of mode 0600 (file:PATH) or in a variable (env:NAME).`

// storeURL returns the URL of a database that an argument or a flag names.
func (a *app) storeURL(argument string) (string, error) {
	if !strings.HasPrefix(argument, "file:") && !strings.HasPrefix(argument, "env:") && !strings.HasPrefix(argument, "sqlite:") && store.HasPassword(argument) {
		return "", usage("the database's URL has a password, and every user of this machine can read the command line: write the URL in a file of mode 0600 and pass file:PATH, or in a variable and pass env:NAME, or name a password_file in the URL")
	}
	u, err := store.Expand(argument, a.getenv)
	if err != nil {
		return "", usage("%v", err)
	}
	if _, err := store.CheckURL(u); err != nil {
		return "", usage("%v", err)
	}
	return u, nil
}

// logURL is storeURL for a log, which may also be a file: a database or an export.
func (a *app) logURL(argument string) (string, error) {
	scheme, _, isURL := strings.Cut(argument, ":")
	if !isURL || filepath.IsAbs(argument) || strings.HasPrefix(argument, ".") || !strings.Contains(argument, "://") && scheme != "sqlite" && scheme != "file" && scheme != "env" && scheme != "postgres" && scheme != "postgresql" {
		return argument, nil
	}
	return a.storeURL(argument)
}

// storeOf returns the database of a flag, or else of the operator's file.
func (a *app) storeOf(flag, file string) (string, error) {
	if flag != "" {
		return a.storeURL(flag)
	}
	cfg, err := config.Load(file, a.getenv)
	if err != nil {
		return "", err
	}
	return cfg.Store, nil
}

#!/bin/sh
# Make the secrets that compose.cluster.yaml reads:   docker/secrets.sh FOLDER
# The folder is for its owner alone; containers get single files of it. Existing ones stay.
set -eu
folder=${1:?usage: docker/secrets.sh FOLDER, a new folder outside of version control}
umask 077
mkdir "$folder"
random() { od -An -vtx1 -N"$1" /dev/urandom | tr -d ' \n'; }

password=$(random 32)
printf '%s' "$password" >"$folder/database_password"
# libpq's service file, so that the password is part of no URL and of no environment.
cat >"$folder/database_service" <<SERVICE
[mpsearch]
host=database
dbname=mpsearch
user=mpsearch
password=$password
SERVICE

printf '%s' "$(random 32)" >"$folder/ray_token"

access=$(random 10) secret=$(random 32)
cat >"$folder/aws_credentials" <<CREDENTIALS
[default]
aws_access_key_id = $access
aws_secret_access_key = $secret
CREDENTIALS
cat >"$folder/object_store" <<IDENTITIES
{"identities": [{"name": "mpsearch", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
                 "credentials": [{"accessKey": "$access", "secretKey": "$secret"}]}]}
IDENTITIES
# Read by the users of the containers; the folder around them keeps everyone else out.
chmod 444 "$folder"/*
